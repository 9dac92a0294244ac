#include "backend/cuda/attention_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <utility>

namespace nibble::backend::cuda {
namespace {

std::vector<SequenceLengths> random_sequences(std::mt19937& random, std::int32_t count, std::int32_t max_query,
                                              std::int32_t max_context) {
  std::vector<SequenceLengths> sequences;
  std::int32_t start = 0;
  for (std::int32_t s = 0; s < count; ++s) {
    const auto query = std::uniform_int_distribution<std::int32_t>(1, max_query)(random);
    const auto context = std::uniform_int_distribution<std::int32_t>(query, query + max_context)(random);
    sequences.push_back({s, start, query, context});
    start += query;
  }
  return sequences;
}

TEST(AttentionSchedule, Fa2CoversEveryRowAndContextOnceAndKeepsWithinTheGrid) {
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const std::int32_t group = std::uniform_int_distribution<std::int32_t>(1, 9)(random);
    const std::int32_t num_kv_heads = std::uniform_int_distribution<std::int32_t>(1, 32)(random);
    const std::int32_t window = repeat % 3 == 0 ? 300 : 0;
    const AttentionHeads heads{group * num_kv_heads, num_kv_heads, window};
    const bool is_decode = repeat % 2 == 0;
    const std::int32_t count = std::uniform_int_distribution<std::int32_t>(1, 90)(random);
    auto sequences = random_sequences(random, count, is_decode ? 1 : 400, 5000);
    if (is_decode) sequences.back().context_len = 0;  // pads the batch
    const Fa2Limits limits{.tile_rows = is_decode ? 16 : 128,
                           .block_size = 16,
                           .num_slots = 264,
                           .min_chunk_len = 128,
                           .always_split = is_decode,
                           .num_sequences = count};
    Fa2Schedule schedule;
    schedule_fa2(sequences, heads, limits, schedule);

    std::map<std::pair<std::int32_t, std::int32_t>, std::set<std::int32_t>> chunks;
    for (std::int32_t i = 0; i < schedule.num_tiles(); ++i) {
      const auto tile = static_cast<std::size_t>(i);
      auto& taken = chunks[std::pair(schedule.sequence[tile], schedule.q_tile[tile])];
      EXPECT_TRUE(taken.insert(schedule.kv_chunk[tile]).second);
    }
    EXPECT_EQ(schedule.chunk_len % limits.block_size, 0);
    std::int64_t row_tiles = 0;
    std::size_t merge_row = 0;
    for (const SequenceLengths& lengths : sequences) {
      const std::int32_t tiles = (lengths.query_len * group + limits.tile_rows - 1) / limits.tile_rows;
      row_tiles += tiles;
      const std::int32_t visible =
          window > 0 ? std::min(lengths.context_len, window - 1 + limits.tile_rows) : lengths.context_len;
      const std::int32_t num_chunks = (visible + schedule.chunk_len - 1) / schedule.chunk_len;
      for (std::int32_t tile = 0; tile < tiles && num_chunks > 0; ++tile) {
        ASSERT_EQ((chunks[{lengths.sequence, tile}].size()), static_cast<std::size_t>(num_chunks));
        ASSERT_EQ((*chunks[{lengths.sequence, tile}].rbegin()), num_chunks - 1);
      }
      for (std::int32_t token = 0; token < lengths.query_len; ++token) {
        const MergeRow& row = schedule.merge_rows[merge_row++];
        EXPECT_EQ(row.row, lengths.query_start + token);
        EXPECT_EQ(row.count, num_chunks);
        EXPECT_EQ(row.first, schedule.partial_start[static_cast<std::size_t>(lengths.sequence)] + token * num_chunks);
      }
    }
    EXPECT_EQ(merge_row, schedule.merge_rows.size());
    EXPECT_LE(schedule.num_tiles(), fa2_max_tiles(row_tiles, heads, limits.num_slots));
    if (is_decode) {
      EXPECT_TRUE(schedule.is_split);
      EXPECT_LE(schedule.num_partials, fa2_max_tiles(row_tiles, heads, limits.num_slots));
    }
  }
}

TEST(AttentionSchedule, Fa2SplitsALongContextAloneAndAmongShortOnesButNotEqualOnes) {
  const AttentionHeads heads{64, 8, 0};
  const Fa2Limits limits{.tile_rows = 16,
                         .block_size = 16,
                         .num_slots = 264,
                         .min_chunk_len = 128,
                         .always_split = true,
                         .num_sequences = 64};
  Fa2Schedule schedule;
  schedule_fa2(std::vector<SequenceLengths>{{0, 0, 1, 8192}}, heads, limits, schedule);
  EXPECT_GE(schedule.num_tiles(), 30);  // 33 would fill the device
  std::vector<SequenceLengths> sequences;
  for (std::int32_t s = 0; s < 64; ++s) sequences.push_back({s, s, 1, 1000});
  schedule_fa2(sequences, heads, limits, schedule);
  EXPECT_EQ(schedule.num_tiles(), 64);
  sequences[7].context_len = 50000;
  schedule_fa2(sequences, heads, limits, schedule);
  EXPECT_GE(schedule.num_tiles(), 64 + 10);
}

TEST(AttentionSchedule, Fa3GivesEveryTileOfEveryHeadToOneMultiprocessorInFairShares) {
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const auto sequences = random_sequences(random, repeat % 8 + 1, 3000, 2000);
    Fa3Schedule schedule;
    schedule_fa3(sequences, 9, 128, 132, schedule);
    ASSERT_EQ(schedule.work_start.size(), 133U);
    std::set<std::tuple<std::int32_t, std::int32_t, std::int32_t>> seen;
    for (std::size_t i = 0; i < schedule.q_tile.size(); ++i) {
      EXPECT_TRUE(seen.insert({schedule.sequence[i], schedule.q_tile[i], schedule.head[i]}).second);
      const SequenceLengths& lengths = sequences[static_cast<std::size_t>(schedule.sequence[i])];
      EXPECT_EQ(schedule.query_start[i], lengths.query_start);
      EXPECT_EQ(schedule.query_len[i], lengths.query_len);
      EXPECT_EQ(schedule.context_len[i], lengths.context_len);
    }
    std::size_t expected = 0;
    for (const SequenceLengths& lengths : sequences) {
      expected += 9 * static_cast<std::size_t>((lengths.query_len + 127) / 128);
    }
    EXPECT_EQ(seen.size(), expected);
    EXPECT_EQ(schedule.work_start.back(), static_cast<std::int32_t>(expected));
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
