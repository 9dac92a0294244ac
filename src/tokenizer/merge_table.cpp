#include "tokenizer/merge_table.h"

namespace nibble::tokenizer {

MergeTable::MergeTable(std::size_t num_merges) {
  std::size_t size = 16;
  while (size * 2 < num_merges * 3) size *= 2;
  slots_.resize(size);
  mask_ = size - 1;
}

void MergeTable::insert(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t pair = key(left, right);
  std::size_t i = hash(pair) & mask_;
  while (slots_[i].pair != kEmpty && slots_[i].pair != pair) i = (i + 1) & mask_;
  slots_[i] = {pair, merge};
}

}  // namespace nibble::tokenizer
