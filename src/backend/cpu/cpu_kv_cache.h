#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "core/buffer.h"

namespace nibble::backend::cpu {

/// Paged keys and values. Per layer, block and kv head: keys transposed [head_dim, block_size], then values
/// [block_size, head_dim padded to 16]. The memory is mapped, not touched: blocks cost pages once they are used, and
/// the padding reads as zero. E4M3 holds k / k_scale and v / v_scale.
class CpuKvCache final : public KvCache {
 public:
  /// Errors: Unsupported for int8 and for block sizes that are no multiple of 16; OutOfMemory.
  CpuKvCache(std::vector<KvSpec> layers, std::int64_t num_blocks, std::int32_t block_size);

  /// One kv head of one layer, from block 0.
  HeadCache head(std::int64_t layer_idx, std::int64_t kv_head) const;
  /// Writes one token's k and v [num_kv_heads, head_dim] into its slot. Tokens of other slots may be written at once.
  /// `scratch` holds head_dim f32.
  void write(std::int64_t layer_idx, std::int64_t slot, const float* k, const float* v, std::byte* scratch);

 private:
  struct Layer {
    std::int64_t offset_bytes = 0;  // of the layer in memory_
    std::int64_t key_elements = 0;  // per head and block
    std::int64_t value_elements = 0;
  };
  std::byte* head_data(std::int64_t layer_idx, std::int64_t block, std::int64_t kv_head) const;

  std::vector<Layer> offsets_;
  mutable Buffer memory_;
};

}  // namespace nibble::backend::cpu
