#include "backend/cuda/flashinfer_attention.h"

#include <array>

#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

struct Fa2Entry {
  std::int32_t head_dim;
  void (*run)(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream);
  std::int32_t (*blocks_per_multiprocessor)(DType kv_dtype, std::int32_t tile_rows);
};
constexpr std::array kFa2 = {Fa2Entry{64, run_fa2_64, fa2_64_blocks_per_multiprocessor},
                             Fa2Entry{128, run_fa2_128, fa2_128_blocks_per_multiprocessor},
                             Fa2Entry{256, run_fa2_256, fa2_256_blocks_per_multiprocessor}};

const Fa2Entry* find_fa2(std::int32_t head_dim) {
  for (const Fa2Entry& entry : kFa2) {
    if (entry.head_dim == head_dim) return &entry;
  }
  return nullptr;
}

}  // namespace

bool has_fa2(std::int32_t head_dim, DType kv_dtype) {
  return find_fa2(head_dim) != nullptr && (kv_dtype == DType::F16 || kv_dtype == DType::F8E4M3);
}

bool has_fa3(std::int32_t head_dim, DType kv_dtype, std::int32_t sliding_window, std::int32_t compute_major) {
  return has_fa2(head_dim, kv_dtype) && kv_dtype == DType::F16 && head_dim <= 128 && sliding_window == 0 &&
         compute_major == 9;
}

std::int32_t fa2_blocks_per_multiprocessor(std::int32_t head_dim, DType kv_dtype, std::int32_t tile_rows) {
  nibble::check(has_fa2(head_dim, kv_dtype), "FA2: no kernel of this head_dim and KV dtype");
  return find_fa2(head_dim)->blocks_per_multiprocessor(kv_dtype, tile_rows);
}

void run_fa2(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream) {
  nibble::check(has_fa2(attention.head_dim, attention.kv_dtype), "FA2: no kernel of this head_dim and KV dtype");
  find_fa2(attention.head_dim)->run(attention, work, stream);
}

}  // namespace nibble::backend::cuda
