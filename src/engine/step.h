#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace nibble::engine {

/// Host arrays of one step's ForwardBatch, filled sequence by sequence and reused from step to step.
class StepBatch {
 public:
  explicit StepBatch(std::int32_t block_size) : block_size_(block_size) {}

  void clear();
  /// Tokens [first, first + count) of a sequence whose KV blocks are `blocks`.
  void add(std::span<const std::int32_t> tokens, std::int64_t first, std::int64_t count,
           std::span<const std::int32_t> blocks);
  /// Valid until the next clear or add.
  backend::ForwardBatch view();
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens_.size()); }
  /// How steps of one shape are recognised: their number of sequences where each has one token, else 0.
  std::int64_t bucket() const { return tokens_.size() == context_len_.size() ? num_tokens() : 0; }

 private:
  std::int32_t block_size_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> query_start_{0};
  std::vector<std::int32_t> context_len_;
  std::vector<std::span<const std::int32_t>> sequence_blocks_;
  std::vector<std::int32_t> block_table_;
  std::vector<std::int64_t> slot_mapping_;
};

}  // namespace nibble::engine
