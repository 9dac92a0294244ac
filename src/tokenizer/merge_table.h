#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nibble::tokenizer {

/// What merging two neighbouring tokens gives. Merges are applied by rising rank.
struct Merge {
  std::uint32_t rank = kNone;
  std::int32_t token = 0;

  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  explicit operator bool() const { return rank != kNone; }
};

/// (left, right) → Merge, by open addressing; 16 bytes a slot, at most two thirds full.
class MergeTable {
 public:
  MergeTable() : MergeTable(0) {}
  explicit MergeTable(std::size_t num_merges);

  /// At most `num_merges` distinct pairs. A pair given twice takes the later rank, as in `tokenizers`.
  void insert(std::int32_t left, std::int32_t right, Merge merge);

  Merge find(std::int32_t left, std::int32_t right) const {
    const std::uint64_t pair = key(left, right);
    for (std::size_t i = hash(pair) & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.pair == pair) return slot.merge;
      if (slot.pair == kEmpty) return {};
    }
  }

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // ids are not negative

  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }
  static std::size_t hash(std::uint64_t pair) {
    pair *= 0x9E3779B97F4A7C15;
    return static_cast<std::size_t>(pair ^ (pair >> 32));
  }

  std::vector<Slot> slots_;
  std::size_t mask_;
};

}  // namespace nibble::tokenizer
