#pragma once

#include <cstddef>
#include <vector>

#include "backend/backend.h"
#include "core/buffer.h"

namespace nibble::backend::cuda {

/// Keys and values of all layers in one allocation; per layer keys then values:
/// [num_blocks * block_size, num_kv_heads, head_dim] of the layer's dtype, slot by slot.
class CudaKvCache final : public KvCache {
 public:
  /// Errors: OutOfMemory; Unsupported for a dtype that kernels do not read, or a head of more than 256.
  CudaKvCache(std::vector<KvSpec> specs, std::int64_t num_blocks, std::int32_t block_size);

  /// Device memory: const says nothing about it.
  std::byte* keys(std::int64_t layer_idx) const { return keys_[static_cast<std::size_t>(layer_idx)]; }
  std::byte* values(std::int64_t layer_idx) const { return values_[static_cast<std::size_t>(layer_idx)]; }

 private:
  Buffer pool_;
  std::vector<std::byte*> keys_;
  std::vector<std::byte*> values_;
};

}  // namespace nibble::backend::cuda
