#include "backend/cuda/flashinfer_fa2.cuh"

namespace nibble::backend::cuda {

void run_fa2_64(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream) {
  with_fa2_kernel<64>(attention.kv_dtype, work.tile_rows, [&](auto kernel) { kernel.run(attention, work, stream); });
}

std::int32_t fa2_64_blocks_per_multiprocessor(DType kv_dtype, std::int32_t tile_rows) {
  return with_fa2_kernel<64>(kv_dtype, tile_rows, [](auto kernel) { return kernel.blocks_per_multiprocessor(); });
}

}  // namespace nibble::backend::cuda
