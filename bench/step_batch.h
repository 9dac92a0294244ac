#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace nibble::bench {

/// A step of `num_sequences` sequences with `num_new` tokens each, behind `context` cached ones; blocks in order.
class StepBatch {
 public:
  static constexpr std::int32_t kBlockSize = 16;

  StepBatch(std::int64_t num_sequences, std::int64_t num_new, std::int64_t context) {
    const std::int64_t length = context + num_new;
    blocks_per_sequence_ = (length + kBlockSize - 1) / kBlockSize;
    query_start_.push_back(0);
    for (std::int64_t s = 0; s < num_sequences; ++s) {
      for (std::int64_t b = 0; b < blocks_per_sequence_; ++b) {
        block_table_.push_back(static_cast<std::int32_t>(s * blocks_per_sequence_ + b));
      }
      for (std::int64_t p = context; p < length; ++p) {
        tokens_.push_back(static_cast<std::int32_t>((p * 37 + s) % 251));
        positions_.push_back(static_cast<std::int32_t>(p));
        slot_mapping_.push_back((s * blocks_per_sequence_ + p / kBlockSize) * kBlockSize + p % kBlockSize);
      }
      query_start_.push_back(static_cast<std::int32_t>(tokens_.size()));
      context_len_.push_back(static_cast<std::int32_t>(length));
      logit_rows_.push_back(static_cast<std::int32_t>(tokens_.size()) - 1);
    }
  }

  std::int64_t num_blocks() const { return static_cast<std::int64_t>(block_table_.size()); }
  backend::ForwardBatch batch() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .query_start = query_start_,
            .context_len = context_len_,
            .block_table = block_table_,
            .block_table_stride = blocks_per_sequence_,
            .slot_mapping = slot_mapping_,
            .logit_rows = logit_rows_};
  }

 private:
  std::int64_t blocks_per_sequence_ = 0;
  std::vector<std::int32_t> tokens_, positions_, query_start_, context_len_, block_table_, logit_rows_;
  std::vector<std::int64_t> slot_mapping_;
};

}  // namespace nibble::bench
