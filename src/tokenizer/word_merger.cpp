#include "tokenizer/word_merger.h"

#include <algorithm>

#include "core/error.h"

namespace nibble::tokenizer {
namespace {

constexpr std::uint32_t kNoBucket = 0xFFFFFFFF;
// Memory of longer words is given back at once.
constexpr std::size_t kMaxKeptChunks = 16 * 1024;
constexpr std::int32_t kInside = -1;  // a place in the middle of a token; no span is 1 there

}  // namespace

std::size_t WordMerger::merge(const MergeTable& merges, std::span<std::int32_t> symbols) {
  if (symbols.size() < 2) return symbols.size();
  check(symbols.size() <= kMaxSymbols, "a word is not longer than kMaxSymbols");
  if (symbols.size() <= kMaxShortSymbols) return merge_short(merges, symbols);
  symbols_ = symbols;
  merge_long(merges);
  release();
  return compact();
}

std::size_t WordMerger::merge_short(const MergeTable& merges, std::span<std::int32_t> symbols) {
  std::size_t num_pairs = symbols.size() - 1;
  for (std::size_t i = 0; i < num_pairs; ++i) pair_merges_[i] = merges.find(symbols[i], symbols[i + 1]);
  while (num_pairs > 0) {
    const auto pairs_end = pair_merges_.begin() + static_cast<std::ptrdiff_t>(num_pairs);
    const auto best = std::min_element(pair_merges_.begin(), pairs_end,
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (!*best) break;
    const auto i = static_cast<std::size_t>(best - pair_merges_.begin());
    symbols[i] = best->token;
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 2,
              symbols.begin() + static_cast<std::ptrdiff_t>(num_pairs) + 1,
              symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    std::copy(best + 1, pairs_end, best);
    --num_pairs;
    if (i > 0) pair_merges_[i - 1] = merges.find(symbols[i - 1], symbols[i]);
    if (i < num_pairs) pair_merges_[i] = merges.find(symbols[i], symbols[i + 1]);
  }
  return num_pairs + 1;
}

// A heap of all pairs costs a cache miss a level on a word of megabytes. Pairs of one rank are the same pair, so they
// share a bucket: a list from left to right, appended to in constant time. Only the buckets are in a heap.
void WordMerger::merge_long(const MergeTable& merges) {
  for (std::int32_t place = 0; place + 1 < static_cast<std::int32_t>(symbols_.size()); ++place) {
    add_pair(merges, place);
  }
  while (!queue_.empty()) {
    const std::uint32_t index = queue_.top().second;
    const std::int32_t place = pop_place(buckets_[index]);
    if (place == kEnd) {
      buckets_[index].is_queued = false;
      queue_.pop();
    } else if (is_current(buckets_[index], place)) {
      apply(merges, buckets_[index].merge, place);
    }
  }
}

void WordMerger::add_pair(const MergeTable& merges, std::int32_t place) {
  const std::int32_t right = symbol(next(place));
  const Merge merge = merges.find(symbol(place), right);
  if (!merge) return;
  const std::uint32_t index = bucket_of(merge, symbol(place), right);
  Bucket& bucket = buckets_[index];
  append_place(bucket, place);
  if (!bucket.is_queued) queue_.push({merge.rank, index});
  bucket.is_queued = true;
}

std::uint32_t WordMerger::bucket_of(Merge merge, std::int32_t left, std::int32_t right) {
  if (merge.rank >= bucket_of_rank_.size()) bucket_of_rank_.resize(merge.rank + 1, kNoBucket);
  std::uint32_t& index = bucket_of_rank_[merge.rank];
  if (index == kNoBucket) {
    index = static_cast<std::uint32_t>(buckets_.size());
    Bucket& bucket = buckets_.emplace_back();
    bucket.left = left;
    bucket.right = right;
    bucket.merge = merge;
  }
  return index;
}

void WordMerger::append_place(Bucket& bucket, std::int32_t place) {
  if (bucket.first_chunk == kEnd) return append_run(bucket, {place, place, 0});
  Run& last = run(bucket.last_chunk, bucket.last_run);
  if (place < last.last) {
    bucket.late.push(place);
  } else if (last.first == last.last || place - last.last == last.step) {
    last.step = place - last.last;
    last.last = place;
  } else {
    append_run(bucket, {place, place, 0});
  }
}

void WordMerger::append_run(Bucket& bucket, Run added) {
  if (bucket.first_chunk == kEnd) {
    bucket.first_chunk = bucket.last_chunk = new_chunk();
    bucket.first_run = bucket.last_run = 0;
  } else if (++bucket.last_run == Chunk::kRuns) {
    const std::int32_t chunk = new_chunk();
    chunks_[static_cast<std::size_t>(bucket.last_chunk)].next = chunk;
    bucket.last_chunk = chunk;
    bucket.last_run = 0;
  }
  run(bucket.last_chunk, bucket.last_run) = added;
}

std::int32_t WordMerger::new_chunk() {
  std::int32_t chunk = free_chunks_;
  if (chunk == kEnd) {
    chunk = static_cast<std::int32_t>(chunks_.size());
    chunks_.emplace_back();
  } else {
    free_chunks_ = chunks_[static_cast<std::size_t>(chunk)].next;
  }
  chunks_[static_cast<std::size_t>(chunk)].next = kEnd;
  return chunk;
}

std::int32_t WordMerger::pop_place(Bucket& bucket) {
  const bool has_listed = bucket.first_chunk != kEnd;
  if (!has_listed && bucket.late.empty()) return kEnd;
  if (!has_listed || (!bucket.late.empty() && bucket.late.top() < run(bucket.first_chunk, bucket.first_run).first)) {
    const std::int32_t place = bucket.late.top();
    bucket.late.pop();
    return place;
  }
  Run& first = run(bucket.first_chunk, bucket.first_run);
  const std::int32_t place = first.first;
  if (place == first.last) {
    drop_first_run(bucket);
  } else {
    first.first += first.step;
  }
  return place;
}

void WordMerger::drop_first_run(Bucket& bucket) {
  const bool is_last_run = bucket.first_chunk == bucket.last_chunk && bucket.first_run == bucket.last_run;
  if (++bucket.first_run < Chunk::kRuns && !is_last_run) return;
  Chunk& chunk = chunks_[static_cast<std::size_t>(bucket.first_chunk)];
  const std::int32_t next_chunk = chunk.next;
  chunk.next = free_chunks_;
  free_chunks_ = bucket.first_chunk;
  bucket.first_chunk = next_chunk;
  bucket.first_run = 0;
}

WordMerger::Run& WordMerger::run(std::int32_t chunk, std::int32_t index) {
  return chunks_[static_cast<std::size_t>(chunk)].runs[static_cast<std::size_t>(index)];
}

bool WordMerger::is_current(const Bucket& bucket, std::int32_t place) const {
  if (symbol(place) != bucket.left) return false;
  const std::int32_t right = next(place);
  return right < static_cast<std::int32_t>(symbols_.size()) && symbol(right) == bucket.right;
}

void WordMerger::apply(const MergeTable& merges, const Merge& merge, std::int32_t place) {
  const auto begin = static_cast<std::size_t>(place);
  const std::int32_t right = next(place);
  const std::int32_t merged_span = right - place + span(right);
  symbols_[static_cast<std::size_t>(right)] = kInside;
  symbols_[begin] = merge.token;
  symbols_[begin + 1] = -merged_span;
  symbols_[begin + static_cast<std::size_t>(merged_span) - 1] = -merged_span;
  if (place > 0) add_pair(merges, previous(place));
  if (next(place) < static_cast<std::int32_t>(symbols_.size())) add_pair(merges, place);
}

std::int32_t WordMerger::span(std::int32_t place) const {
  const auto behind = static_cast<std::size_t>(place) + 1;
  return behind < symbols_.size() && symbols_[behind] < 0 ? -symbols_[behind] : 1;
}

std::int32_t WordMerger::next(std::int32_t place) const {
  return place + span(place);
}

std::int32_t WordMerger::previous(std::int32_t place) const {
  const std::int32_t before = symbol(place - 1);
  return before < 0 ? place + before : place - 1;
}

std::size_t WordMerger::compact() {
  std::size_t num_tokens = 0;
  for (std::int32_t place = 0; place < static_cast<std::int32_t>(symbols_.size());) {
    const std::int32_t behind = next(place);
    symbols_[num_tokens++] = symbol(place);  // never at or behind `behind`
    place = behind;
  }
  return num_tokens;
}

void WordMerger::release() {
  for (const Bucket& bucket : buckets_) bucket_of_rank_[bucket.merge.rank] = kNoBucket;
  buckets_.clear();
  if (chunks_.size() > kMaxKeptChunks) chunks_ = {};
  chunks_.clear();
  free_chunks_ = kEnd;
}

}  // namespace nibble::tokenizer
