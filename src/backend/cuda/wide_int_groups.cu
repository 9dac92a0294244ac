#include "backend/cuda/wide_kernel.cuh"

namespace nibble::backend::cuda {

template void multiply_wide(const IntCodec<2, false>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<3, false>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<4, false>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<8, false>&, const void*, const WideProduct&, cudaStream_t);

}  // namespace nibble::backend::cuda
