#include "tokenizer/word_merger.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace nibble::tokenizer {
namespace {

using Symbols = std::vector<std::int32_t>;
using Merges = std::map<std::pair<std::int32_t, std::int32_t>, Merge>;

/// The definition: again and again the leftmost pair of lowest rank.
Symbols merge_by_definition(const Merges& merges, Symbols symbols) {
  while (true) {
    Merge best;
    std::size_t best_place = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = merges.find({symbols[i], symbols[i + 1]});
      if (found != merges.end() && found->second.rank < best.rank) {
        best = found->second;
        best_place = i;
      }
    }
    if (!best) return symbols;
    symbols[best_place] = best.token;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_place) + 1);
  }
}

/// Merges of random tokens in random order: a merge may come before the ones that make its parts.
Merges random_merges(std::mt19937& random, std::int32_t num_letters, std::uint32_t num_merges) {
  std::vector<std::uint32_t> ranks(num_merges);
  for (std::uint32_t i = 0; i < num_merges; ++i) ranks[i] = i;
  std::shuffle(ranks.begin(), ranks.end(), random);
  Merges merges;
  std::int32_t num_tokens = num_letters;
  for (const std::uint32_t rank : ranks) {
    std::uniform_int_distribution<std::int32_t> any_token(0, num_tokens - 1);
    const bool is_new = merges.emplace(std::pair(any_token(random), any_token(random)), Merge{rank, num_tokens}).second;
    if (is_new) ++num_tokens;
  }
  return merges;
}

TEST(WordMerger, MergesShortAndLongWordsByDefinition) {
  std::mt19937 random(11);
  WordMerger merger;
  for (int round = 0; round < 400; ++round) {
    const auto num_letters = static_cast<std::int32_t>(1 + random() % 4);
    const Merges merges = random_merges(random, num_letters, 1 + random() % 40);
    MergeTable table(merges.size());
    for (const auto& [pair, merge] : merges) table.insert(pair.first, pair.second, merge);
    for (const std::size_t size : {1U, 2U, 17U, 63U, 64U, 65U, 66U, 127U, 500U}) {
      Symbols symbols(size);
      for (std::int32_t& symbol : symbols) symbol = static_cast<std::int32_t>(random() % 1000) % num_letters;
      Symbols merged = symbols;
      merged.resize(merger.merge(table, merged));
      ASSERT_EQ(merged, merge_by_definition(merges, symbols)) << "round " << round << ", size " << size;
    }
  }
}

TEST(MergeTable, KeepsTheLaterRankOfAPairGivenTwice) {
  MergeTable table(2);
  table.insert(1, 2, {0, 3});
  table.insert(1, 2, {1, 3});
  EXPECT_EQ(table.find(1, 2).rank, 1U);
  EXPECT_FALSE(table.find(2, 1));
}

}  // namespace
}  // namespace nibble::tokenizer
