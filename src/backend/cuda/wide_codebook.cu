#include "backend/cuda/wide_kernel.cuh"

namespace nibble::backend::cuda {

template void multiply_wide(const CodebookCodec<3>&, const void*, const WideProduct&, cudaStream_t);
template void multiply_wide(const CodebookCodec<4>&, const void*, const WideProduct&, cudaStream_t);

}  // namespace nibble::backend::cuda
