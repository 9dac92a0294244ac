#include "backend/cuda/wide_kernel.cuh"

namespace nibble::backend::cuda {

template void multiply_wide(const IntCodec<2, true>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<3, true>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<4, true>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const IntCodec<8, true>&, const void*, const WideProduct&, cudaStream_t);

}  // namespace nibble::backend::cuda
