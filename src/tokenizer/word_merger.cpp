#include "tokenizer/word_merger.h"

#include <algorithm>
#include <functional>

#include "core/error.h"

namespace nibble::tokenizer {
namespace {

constexpr std::uint32_t kNoBucket = 0xFFFFFFFF;
// Up to here scanning all pairs for the lowest rank beats any queue.
constexpr std::size_t kMaxShortSymbols = 64;
// Memory of longer words is given back at once.
constexpr std::size_t kMaxKeptSymbols = 64 * 1024;

}  // namespace

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

void WordMerger::merge(const MergeTable& merges, std::vector<std::int32_t>& symbols) {
  if (symbols.size() < 2) return;
  check(symbols.size() <= kMaxSymbols, "a word is not longer than kMaxSymbols");
  if (symbols.size() <= kMaxShortSymbols) {
    merge_short(merges, symbols);
  } else {
    merge_long(merges, symbols);
  }
}

void WordMerger::merge_short(const MergeTable& merges, std::vector<std::int32_t>& symbols) {
  pair_merges_.resize(symbols.size() - 1);
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) pair_merges_[i] = merges.find(symbols[i], symbols[i + 1]);
  while (!pair_merges_.empty()) {
    const auto best = std::min_element(pair_merges_.begin(), pair_merges_.end(),
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (!*best) return;
    const auto i = static_cast<std::size_t>(best - pair_merges_.begin());
    symbols[i] = best->token;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    pair_merges_.erase(best);
    if (i > 0) pair_merges_[i - 1] = merges.find(symbols[i - 1], symbols[i]);
    if (i < pair_merges_.size()) pair_merges_[i] = merges.find(symbols[i], symbols[i + 1]);
  }
}

// A heap of all pairs costs a cache miss a level on a word of megabytes. Pairs of one rank are the same pair, so they
// share a bucket: a list from left to right, appended to in constant time. Only the buckets are in a heap.
void WordMerger::merge_long(const MergeTable& merges, std::vector<std::int32_t>& symbols) {
  link_symbols(symbols);
  for (std::int32_t place = 0; place + 1 < static_cast<std::int32_t>(linked_.size()); ++place) {
    add_pair(merges, place);
  }
  while (!queue_.empty()) {
    const auto [rank, index] = queue_.top();
    // buckets_ may grow in apply(), so no reference to the bucket is kept across it.
    const std::int32_t place = pop_place(buckets_[index]);
    if (place == kEnd) {
      buckets_[index].is_queued = false;
      queue_.pop();
      continue;
    }
    const Symbol& symbol = linked_[static_cast<std::size_t>(place)];
    const bool is_current = symbol.token == buckets_[index].left && symbol.next != kEnd &&
                            linked_[static_cast<std::size_t>(symbol.next)].token == buckets_[index].right;
    if (is_current) apply(merges, buckets_[index].merge, place);
  }
  symbols.clear();
  for (const Symbol& symbol : linked_) {
    if (symbol.token != kMerged) symbols.push_back(symbol.token);
  }
  release();
}

void WordMerger::link_symbols(const std::vector<std::int32_t>& symbols) {
  const auto num_symbols = static_cast<std::int32_t>(symbols.size());
  linked_.resize(symbols.size());
  for (std::int32_t i = 0; i < num_symbols; ++i) {
    const auto index = static_cast<std::size_t>(i);
    linked_[index] = {symbols[index], i - 1, i + 1 < num_symbols ? i + 1 : kEnd};
  }
}

void WordMerger::add_pair(const MergeTable& merges, std::int32_t place) {
  const Symbol& symbol = linked_[static_cast<std::size_t>(place)];
  const std::int32_t right = linked_[static_cast<std::size_t>(symbol.next)].token;
  const Merge merge = merges.find(symbol.token, right);
  if (!merge) return;
  const std::uint32_t index = bucket_of(merge, symbol.token, right);
  Bucket& bucket = buckets_[index];
  if (bucket.first_entry != kEnd && entries_[static_cast<std::size_t>(bucket.last_entry)].place > place) {
    bucket.late.push(place);
  } else {
    append_entry(bucket, place);
  }
  if (!bucket.is_queued) queue_.push({merge.rank, index});
  bucket.is_queued = true;
}

std::uint32_t WordMerger::bucket_of(Merge merge, std::int32_t left, std::int32_t right) {
  if (merge.rank >= bucket_of_rank_.size()) bucket_of_rank_.resize(merge.rank + 1, kNoBucket);
  std::uint32_t& index = bucket_of_rank_[merge.rank];
  if (index == kNoBucket) {
    index = static_cast<std::uint32_t>(buckets_.size());
    buckets_.emplace_back();
    buckets_.back().left = left;
    buckets_.back().right = right;
    buckets_.back().merge = merge;
  }
  return index;
}

void WordMerger::append_entry(Bucket& bucket, std::int32_t place) {
  std::int32_t entry = free_entries_;
  if (entry == kEnd) {
    entry = static_cast<std::int32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    free_entries_ = entries_[static_cast<std::size_t>(entry)].next;
  }
  entries_[static_cast<std::size_t>(entry)] = {place, kEnd};
  if (bucket.first_entry == kEnd) {
    bucket.first_entry = entry;
  } else {
    entries_[static_cast<std::size_t>(bucket.last_entry)].next = entry;
  }
  bucket.last_entry = entry;
}

std::int32_t WordMerger::pop_place(Bucket& bucket) {
  const bool has_listed = bucket.first_entry != kEnd;
  const Entry listed = has_listed ? entries_[static_cast<std::size_t>(bucket.first_entry)] : Entry{kEnd, kEnd};
  if (!bucket.late.empty() && (!has_listed || bucket.late.top() < listed.place)) {
    const std::int32_t place = bucket.late.top();
    bucket.late.pop();
    return place;
  }
  if (has_listed) {
    entries_[static_cast<std::size_t>(bucket.first_entry)].next = free_entries_;
    free_entries_ = bucket.first_entry;
    bucket.first_entry = listed.next;
  }
  return listed.place;
}

void WordMerger::apply(const MergeTable& merges, const Merge& merge, std::int32_t place) {
  Symbol& symbol = linked_[static_cast<std::size_t>(place)];
  Symbol& right = linked_[static_cast<std::size_t>(symbol.next)];
  symbol.token = merge.token;
  symbol.next = right.next;
  right.token = kMerged;
  if (symbol.next != kEnd) linked_[static_cast<std::size_t>(symbol.next)].previous = place;
  const std::int32_t previous = symbol.previous;
  if (previous != kEnd) add_pair(merges, previous);
  if (linked_[static_cast<std::size_t>(place)].next != kEnd) add_pair(merges, place);
}

void WordMerger::release() {
  for (const Bucket& bucket : buckets_) bucket_of_rank_[bucket.merge.rank] = kNoBucket;
  buckets_.clear();
  entries_.clear();
  free_entries_ = kEnd;
  if (linked_.size() <= kMaxKeptSymbols) return;
  linked_ = {};
  entries_ = {};
}

}  // namespace nibble::tokenizer
