#include "engine/step.h"

#include <algorithm>

namespace nibble::engine {

void StepBatch::clear() {
  tokens_.clear();
  positions_.clear();
  query_start_.assign(1, 0);
  context_len_.clear();
  sequence_blocks_.clear();
  slot_mapping_.clear();
  logit_rows_.clear();
}

void StepBatch::add(std::span<const std::int32_t> tokens, std::int64_t first, std::int64_t count,
                    std::span<const std::int32_t> blocks) {
  for (std::int64_t position = first; position < first + count; ++position) {
    tokens_.push_back(tokens[static_cast<std::size_t>(position)]);
    positions_.push_back(static_cast<std::int32_t>(position));
    const std::int64_t block = blocks[static_cast<std::size_t>(position / block_size_)];
    slot_mapping_.push_back(block * block_size_ + position % block_size_);
  }
  query_start_.push_back(static_cast<std::int32_t>(tokens_.size()));
  context_len_.push_back(static_cast<std::int32_t>(first + count));
  sequence_blocks_.push_back(blocks);
}

backend::ForwardBatch StepBatch::view() {
  std::size_t stride = 1;
  for (const auto& blocks : sequence_blocks_) stride = std::max(stride, blocks.size());
  block_table_.assign(stride * sequence_blocks_.size(), 0);
  for (std::size_t s = 0; s < sequence_blocks_.size(); ++s) {
    std::ranges::copy(sequence_blocks_[s], block_table_.begin() + static_cast<std::ptrdiff_t>(s * stride));
  }
  return {.tokens = tokens_,
          .positions = positions_,
          .query_start = query_start_,
          .context_len = context_len_,
          .block_table = block_table_,
          .block_table_stride = static_cast<std::int64_t>(stride),
          .slot_mapping = slot_mapping_,
          .logit_rows = logit_rows_};
}

}  // namespace nibble::engine
