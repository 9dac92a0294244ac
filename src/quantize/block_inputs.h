#pragma once

#include <cstdint>
#include <filesystem>

#include "core/tensor.h"

namespace nibble::quantize {

/// The residual stream in front of every block, in a scratch file. f32: a block that is recomputed from f16 has
/// gradients that are off by half a per cent. One thread calls it.
class BlockInputs {
 public:
  /// Opens the file with what it holds, or creates it. Errors: Unavailable, naming it.
  BlockInputs(std::filesystem::path file, std::int64_t num_tokens, std::int64_t width);
  ~BlockInputs();
  BlockInputs(const BlockInputs&) = delete;
  BlockInputs& operator=(const BlockInputs&) = delete;

  /// hidden [tokens, width], contiguous: tokens from `first_token` of block `block_idx`.
  void store(std::int64_t block_idx, std::int64_t first_token, Matrix<const float> hidden);
  void load(std::int64_t block_idx, std::int64_t first_token, Matrix<float> hidden) const;
  /// Returns when what was stored is durable.
  void sync();

 private:
  std::int64_t offset_of(std::int64_t block_idx, std::int64_t token) const {
    return (block_idx * num_tokens_ + token) * width_ * static_cast<std::int64_t>(sizeof(float));
  }

  std::filesystem::path path_;
  std::int64_t num_tokens_;
  std::int64_t width_;
  int descriptor_ = -1;
};

}  // namespace nibble::quantize
