#pragma once

#include <cstdint>
#include <queue>
#include <vector>

#include "tokenizer/merge_table.h"

namespace nibble::tokenizer {

/// Merges the symbols of one word until no merge applies: always the one of lowest rank, of equals the leftmost. Reuses
/// its memory from word to word. One thread uses it at a time.
class WordMerger {
 public:
  /// `symbols`: token ids in, merged token ids out. O(n log n).
  void merge(const MergeTable& merges, std::vector<std::int32_t>& symbols);

  /// So that places and list entries fit 31 bits.
  static constexpr std::size_t kMaxSymbols = std::size_t{1} << 29;

 private:
  /// Places where one merge may apply, in the order they are to be tried.
  struct Bucket {
    std::int32_t left = 0;
    std::int32_t right = 0;
    Merge merge;
    std::int32_t first_entry = kEnd;
    std::int32_t last_entry = kEnd;
    bool is_queued = false;
    // Places that came after a place to their right: rare, so kept apart from the sorted list.
    std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> late;
  };
  struct Entry {
    std::int32_t place;
    std::int32_t next;
  };
  struct Symbol {
    std::int32_t token;
    std::int32_t previous;
    std::int32_t next;
  };
  static constexpr std::int32_t kEnd = -1;
  static constexpr std::int32_t kMerged = -1;  // token of a symbol that went into its left neighbour

  void merge_short(const MergeTable& merges, std::vector<std::int32_t>& symbols);
  void merge_long(const MergeTable& merges, std::vector<std::int32_t>& symbols);
  void link_symbols(const std::vector<std::int32_t>& symbols);
  void add_pair(const MergeTable& merges, std::int32_t place);
  std::uint32_t bucket_of(Merge merge, std::int32_t left, std::int32_t right);
  void append_entry(Bucket& bucket, std::int32_t place);
  std::int32_t pop_place(Bucket& bucket);
  void apply(const MergeTable& merges, const Merge& merge, std::int32_t place);
  void release();

  std::vector<Merge> pair_merges_;  // of merge_short

  std::vector<Symbol> linked_;
  std::vector<Bucket> buckets_;
  std::vector<Entry> entries_;
  std::int32_t free_entries_ = kEnd;           // a list through `next`
  std::vector<std::uint32_t> bucket_of_rank_;  // kNoBucket where none; grows to the number of merges
  using RankedBucket = std::pair<std::uint32_t, std::uint32_t>;
  std::priority_queue<RankedBucket, std::vector<RankedBucket>, std::greater<>> queue_;
};

}  // namespace nibble::tokenizer
