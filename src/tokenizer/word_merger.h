#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "tokenizer/merge_table.h"

namespace nibble::tokenizer {

/// Merges the symbols of one word until no merge applies: always the one of lowest rank, of equals the leftmost. Reuses
/// its memory from word to word. One thread uses it at a time.
class WordMerger {
 public:
  /// `symbols`: token ids in, merged token ids out, at the front; answers how many. At most kMaxSymbols.
  /// O(n log n); beside them it needs up to six bytes a symbol.
  std::size_t merge(const MergeTable& merges, std::span<std::int32_t> symbols);

  /// So that places and spans fit 31 bits.
  static constexpr std::size_t kMaxSymbols = std::size_t{1} << 29;

 private:
  /// Places first, first + step, …, last: where a text repeats itself, few of these hold all places.
  struct Run {
    std::int32_t first;
    std::int32_t last;
    std::int32_t step;
  };
  /// Part of a bucket's list of runs: a cache line.
  struct Chunk {
    static constexpr std::int32_t kRuns = 5;
    std::int32_t next;
    std::array<Run, kRuns> runs;
  };
  /// Places where one merge may apply, in the order they are to be tried.
  struct Bucket {
    std::int32_t left = 0;
    std::int32_t right = 0;
    Merge merge;
    std::int32_t first_chunk = kEnd;
    std::int32_t last_chunk = kEnd;
    std::int32_t first_run = 0;  // in first_chunk
    std::int32_t last_run = 0;   // in last_chunk
    bool is_queued = false;
    // Places that came after a place to their right: rare, so kept apart from the list.
    std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> late;
  };
  static constexpr std::int32_t kEnd = -1;
  // Up to here scanning all pairs for the lowest rank beats any queue.
  static constexpr std::size_t kMaxShortSymbols = 64;

  std::size_t merge_short(const MergeTable& merges, std::span<std::int32_t> symbols);
  void merge_long(const MergeTable& merges);
  void add_pair(const MergeTable& merges, std::int32_t place);
  std::uint32_t bucket_of(Merge merge, std::int32_t left, std::int32_t right);
  void append_place(Bucket& bucket, std::int32_t place);
  void append_run(Bucket& bucket, Run run);
  std::int32_t new_chunk();
  std::int32_t pop_place(Bucket& bucket);
  void drop_first_run(Bucket& bucket);
  Run& run(std::int32_t chunk, std::int32_t index);
  bool is_current(const Bucket& bucket, std::int32_t place) const;
  void apply(const MergeTable& merges, const Merge& merge, std::int32_t place);
  std::size_t compact();
  void release();

  std::int32_t symbol(std::int32_t place) const { return symbols_[static_cast<std::size_t>(place)]; }
  std::int32_t span(std::int32_t place) const;
  std::int32_t next(std::int32_t place) const;
  std::int32_t previous(std::int32_t place) const;

  std::array<Merge, kMaxShortSymbols - 1> pair_merges_;  // of merge_short

  // The word while merge_long works on it. A token of span s begins at a place p and covers s of the symbols that came
  // in: [p] is the token, [p + 1] and [p + s - 1] are -s, what lies between is negative.
  std::span<std::int32_t> symbols_;
  std::vector<Bucket> buckets_;
  std::vector<Chunk> chunks_;
  std::int32_t free_chunks_ = kEnd;            // a list through `next`
  std::vector<std::uint32_t> bucket_of_rank_;  // grows to the number of merges
  using RankedBucket = std::pair<std::uint32_t, std::uint32_t>;
  std::priority_queue<RankedBucket, std::vector<RankedBucket>, std::greater<>> queue_;
};

}  // namespace nibble::tokenizer
