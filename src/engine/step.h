#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace nibble::engine {

/// Host arrays of one step's ForwardBatch, filled sequence by sequence.
class StepBatch {
 public:
  explicit StepBatch(std::int32_t block_size) : block_size_(block_size) {}

  /// Tokens [first, first + count) of a sequence whose KV blocks are `blocks`.
  void add(std::span<const std::int32_t> tokens, std::int64_t first, std::int64_t count,
           std::span<const std::int32_t> blocks);
  /// The token at `position` of a sequence, which the step before samples in this row.
  void add_sampled(std::int32_t row, std::int64_t position, std::span<const std::int32_t> blocks);
  /// Logits of this token of the step, by its index, are wanted behind those asked for before.
  void want_logits(std::int64_t token_idx) { logit_rows_.push_back(static_cast<std::int32_t>(token_idx)); }
  /// Valid until the next change.
  backend::ForwardBatch view();
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t num_logit_rows() const { return static_cast<std::int64_t>(logit_rows_.size()); }

 private:
  void add_token(std::int32_t token, std::int32_t sampled_row, std::int64_t position,
                 std::span<const std::int32_t> blocks);
  void end_sequence(std::int64_t context_len, std::span<const std::int32_t> blocks);

  std::int32_t block_size_;
  bool has_sampled_rows_ = false;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> sampled_rows_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> query_start_{0};
  std::vector<std::int32_t> context_len_;
  std::vector<std::span<const std::int32_t>> sequence_blocks_;
  std::vector<std::int32_t> block_table_;
  std::vector<std::int64_t> slot_mapping_;
  std::vector<std::int32_t> logit_rows_;
};

}  // namespace nibble::engine
