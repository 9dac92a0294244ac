#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/tensor.h"

/// FlashInfer's attention kernels over the paged cache, instantiated for f16 activations (docs/decisions/0003). Queries
/// are rows of qkv, outputs are dense; both f16. Every sum has a fixed order: the same bits in every run.
namespace nibble::backend::cuda {

/// What both kernels read of a layer and the batch, all on the device.
struct PagedAttention {
  const void* q = nullptr;  // f16 [num_tokens, q_stride], heads first
  std::int64_t q_stride = 0;
  const void* keys = nullptr;  // [num_blocks, block_size, num_kv_heads, head_dim] of kv_dtype
  const void* values = nullptr;
  void* out = nullptr;  // f16 [num_tokens, num_heads, head_dim]
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  DType kv_dtype = DType::F16;
  std::int32_t block_size = 0;
  std::int32_t sliding_window = 0;  // 0: full attention
  float scale = 1;                  // of the scores, k_scale included
  float v_scale = 1;
  std::int64_t num_tokens = 0;
  std::int32_t num_sequences = 0;
  const std::int32_t* block_table = nullptr;
  const std::int32_t* table_start = nullptr;  // [num_sequences + 1] where a sequence's blocks begin in block_table
  const std::int32_t* query_start = nullptr;  // [num_sequences + 1]
  const std::int32_t* context_len = nullptr;  // [num_sequences]
};

/// Work of the FA2 template: a block takes `tile_rows` rows (a row is a token and a head of the group) of a sequence
/// against one chunk of its context, for one KV head.
struct Fa2Work {
  std::int32_t tile_rows = 0;               // kDecodeTileRows or prefill_tile_rows()
  std::int32_t num_tiles = 0;               // blocks per KV head
  const std::int32_t* sequence = nullptr;   // [num_tiles]
  const std::int32_t* q_tile = nullptr;     // [num_tiles]
  const std::int32_t* kv_chunk = nullptr;   // [num_tiles]
  const bool* is_used = nullptr;            // [num_tiles]; the grid of a captured graph does not change
  const std::int32_t* chunk_len = nullptr;  // [1] tokens of the context
  /// [num_sequences] where the sequence's rows of partial results begin; null: contexts are not split, and the kernel
  /// writes `out`.
  const std::int32_t* partial_start = nullptr;
  void* partials = nullptr;       // f16 [num_partials, num_heads, head_dim]
  float* partial_sums = nullptr;  // f32 [num_partials, num_heads]: log2 of the sum of exponentials
};

/// Work of FA3: a persistent block on each multiprocessor takes items [work_start[b], work_start[b + 1]): a tile of
/// fa3_tile_rows() tokens of one query head.
struct Fa3Work {
  const std::int32_t* work_start = nullptr;  // [num_multiprocessors + 1]
  const std::int32_t* q_tile = nullptr;      // [num_items], like the ones below
  const std::int32_t* head = nullptr;
  const std::int32_t* sequence = nullptr;
  const std::int32_t* query_start = nullptr;
  const std::int32_t* query_len = nullptr;
  const std::int32_t* table_start = nullptr;
  const std::int32_t* context_len = nullptr;
};

inline constexpr std::int32_t kDecodeTileRows = 16;

/// Is there a kernel for it? What there is: KV f16 and E4M3, head_dim 64, 128 and 256, any group size, any window.
/// Left out: bf16 activations (the backend has none), bf16 and f32 caches, soft caps.
bool has_fa2(std::int32_t head_dim, DType kv_dtype);
/// FA3 wants a Hopper GPU and an f16 cache. Two of its kernels in FlashInfer 0.7.2 are left out: with a window, as the
/// paged main loop always loads block 0 of V last, which is the wrong one where the window begins later; and head_dim
/// 256, whose results were wrong when compute-sanitizer's racecheck slowed it down.
bool has_fa3(std::int32_t head_dim, DType kv_dtype, std::int32_t sliding_window, std::int32_t compute_major);

/// Rows of the FA2 kernel for long queries; of a tile of FA3, in tokens.
constexpr std::int32_t prefill_tile_rows(std::int32_t head_dim) {
  return head_dim > 128 ? 64 : 128;
}
constexpr std::int32_t fa3_tile_rows(std::int32_t head_dim) {
  return head_dim == 64 ? 192 : 128;
}

/// Blocks of the FA2 kernel that one multiprocessor holds at a time.
std::int32_t fa2_blocks_per_multiprocessor(std::int32_t head_dim, DType kv_dtype, std::int32_t tile_rows);

void run_fa2(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream);
void run_fa3(const PagedAttention& attention, const Fa3Work& work, cudaStream_t stream);

// One file per kernel and head_dim; FA3's are in one.
void run_fa2_64(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream);
void run_fa2_128(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream);
void run_fa2_256(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream);
std::int32_t fa2_64_blocks_per_multiprocessor(DType kv_dtype, std::int32_t tile_rows);
std::int32_t fa2_128_blocks_per_multiprocessor(DType kv_dtype, std::int32_t tile_rows);
std::int32_t fa2_256_blocks_per_multiprocessor(DType kv_dtype, std::int32_t tile_rows);

}  // namespace nibble::backend::cuda
