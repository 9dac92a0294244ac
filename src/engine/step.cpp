#include "engine/step.h"

#include <algorithm>

namespace nibble::engine {

void StepBatch::add(std::span<const std::int32_t> tokens, std::int64_t first, std::int64_t count,
                    std::span<const std::int32_t> blocks) {
  for (std::int64_t position = first; position < first + count; ++position) {
    add_token(tokens[static_cast<std::size_t>(position)], -1, position, blocks);
  }
  end_sequence(first + count, blocks);
}

void StepBatch::add_sampled(std::int32_t row, std::int64_t position, std::span<const std::int32_t> blocks) {
  has_sampled_rows_ = true;
  add_token(0, row, position, blocks);
  end_sequence(position + 1, blocks);
}

void StepBatch::add_token(std::int32_t token, std::int32_t sampled_row, std::int64_t position,
                          std::span<const std::int32_t> blocks) {
  tokens_.push_back(token);
  sampled_rows_.push_back(sampled_row);
  positions_.push_back(static_cast<std::int32_t>(position));
  const std::int64_t block = blocks[static_cast<std::size_t>(position / block_size_)];
  slot_mapping_.push_back(block * block_size_ + position % block_size_);
}

void StepBatch::end_sequence(std::int64_t context_len, std::span<const std::int32_t> blocks) {
  query_start_.push_back(static_cast<std::int32_t>(tokens_.size()));
  context_len_.push_back(static_cast<std::int32_t>(context_len));
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
          .sampled_rows =
              has_sampled_rows_ ? std::span<const std::int32_t>(sampled_rows_) : std::span<const std::int32_t>(),
          .positions = positions_,
          .query_start = query_start_,
          .context_len = context_len_,
          .block_table = block_table_,
          .block_table_stride = static_cast<std::int64_t>(stride),
          .slot_mapping = slot_mapping_,
          .logit_rows = logit_rows_};
}

}  // namespace nibble::engine
