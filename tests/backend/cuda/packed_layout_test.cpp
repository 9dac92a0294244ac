#include "backend/cuda/packed_layout.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>

#include "../linear_cases.h"
#include "backend/cuda/column_plan.h"

namespace nibble::backend::cuda {
namespace {

std::vector<LaneCode> lane_codes() {
  std::vector<LaneCode> codes;
  for (int i = 0; i < 64; ++i) codes.push_back({i / 16, i / 8 % 2, i / 4 % 2, i % 4});
  return codes;
}

TEST(PackedLayout, GivesEveryBitOfALaneItsOwnPlace) {
  for (const auto& [bits, order] :
       {std::pair{2, NibbleOrder::Pairs}, std::pair{3, NibbleOrder::Pairs}, std::pair{3, NibbleOrder::Rows},
        std::pair{4, NibbleOrder::Pairs}, std::pair{4, NibbleOrder::Rows}, std::pair{8, NibbleOrder::Pairs}}) {
    std::set<std::pair<int, int>> places;
    for (const LaneCode& code : lane_codes()) {
      for (int b = 0; b < bits; ++b) {
        const BitPlace place = bit_place(bits, order, code, b);
        ASSERT_LT(place.word, lane_words(bits));
        ASSERT_LT(place.bit, 32);
        EXPECT_TRUE(places.insert({place.word, place.bit}).second) << bits << " bits, word " << place.word;
      }
    }
    EXPECT_EQ(places.size(), static_cast<std::size_t>(64 * bits)) << "no bit of a lane's words is spare";
  }
}

TEST(PackedLayout, GivesEveryWordOfABlockItsOwnBytes) {
  for (const int bits : {2, 3, 4, 8}) {
    std::set<int> offsets;
    for (int lane = 0; lane < 32; ++lane) {
      for (int word = 0; word < lane_words(bits); ++word) offsets.insert(word_offset(bits, lane, word));
    }
    EXPECT_EQ(offsets.size(), static_cast<std::size_t>(code_bytes(bits) / 4));
    EXPECT_EQ(*offsets.rbegin(), code_bytes(bits) - 4);
  }
}

TEST(PackedLayout, CoversTheColumnsOfABlockOnce) {
  std::multiset<int> columns;
  for (int t = 0; t < 4; ++t) {
    for (const LaneCode& code : lane_codes()) {
      if (code.half == 0) columns.insert(column_of(code, t));
    }
  }
  ASSERT_EQ(columns.size(), 128U);
  int expected = 0;
  for (const int column : columns) EXPECT_EQ(column, expected++);
}

/// Every column once, and none beside one of another group.
void expect_right(const weights::GroupedIntWeights& w, const ColumnPlan& plan) {
  std::set<std::int32_t> seen;
  const int span = plan.segments_per_group * kSegmentCols;
  for (std::int32_t i = 0; i < plan.num_blocks * kBlockCols; ++i) {
    const std::int32_t column = plan.columns.empty() ? i : plan.columns[static_cast<std::size_t>(i)];
    if (column < 0 || column >= w.in_features) continue;
    EXPECT_TRUE(seen.insert(column).second);
    const std::int64_t group = w.has_g_idx() ? w.g_idx.span<std::int32_t>()[static_cast<std::size_t>(column)]
                                             : (w.first_group_offset + column) / w.group_size;
    EXPECT_EQ(plan.groups[static_cast<std::size_t>(i / span)], group) << "column " << column;
  }
  EXPECT_EQ(static_cast<std::int64_t>(seen.size()), w.in_features);
}

TEST(ColumnPlan, KeepsTheNaturalOrderWhereGroupsAllowIt) {
  const auto plan_of = [](std::int64_t in, std::int64_t group_size, std::int64_t offset) {
    const auto w = test::random_grouped_int({.label = "",
                                             .out_features = 2,
                                             .in_features = in,
                                             .bits = 4,
                                             .group_size = group_size,
                                             .first_group_offset = offset},
                                            3);
    const ColumnPlan plan = plan_columns(w);
    expect_right(w, plan);
    return std::pair{plan.columns.empty(), plan.segments_per_group};
  };
  EXPECT_EQ(plan_of(576, 128, 0), (std::pair{true, 4}));
  EXPECT_EQ(plan_of(576, 64, 0), (std::pair{true, 2}));
  EXPECT_EQ(plan_of(320, 128, 96), (std::pair{true, 1}));
  EXPECT_EQ(plan_of(100, 100, 0), (std::pair{true, 4}));
  EXPECT_EQ(plan_of(160, 16, 0), (std::pair{false, 1}));
  EXPECT_EQ(plan_of(300, 128, 17), (std::pair{false, 1}));
}

TEST(ColumnPlan, SortsActOrderByGroup) {
  for (const std::int64_t group_size : {128, 64, 48}) {
    const auto w = test::random_grouped_int(
        {.label = "", .out_features = 2, .in_features = 576, .bits = 4, .group_size = group_size, .has_g_idx = true},
        5);
    const ColumnPlan plan = plan_columns(w);
    EXPECT_FALSE(plan.columns.empty());
    EXPECT_EQ(plan.segments_per_group, group_size == 128 ? 4 : group_size == 64 ? 2 : 1);
    expect_right(w, plan);
  }
}

TEST(ColumnPlan, HoldsForGroupsOfAnySize) {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    const auto in = static_cast<std::int64_t>(1 + random() % 700);
    const auto group_size = static_cast<std::int64_t>(1 + random() % 200);
    auto w = test::random_grouped_int({.label = "",
                                       .out_features = 1,
                                       .in_features = in,
                                       .bits = 4,
                                       .group_size = group_size,
                                       .has_g_idx = round % 2 == 0,
                                       .first_group_offset = static_cast<std::int64_t>(random() % group_size)},
                                      random());
    // Groups as a file may have them: some large, some absent.
    if (w.has_g_idx()) {
      for (std::int32_t& group : w.g_idx.span<std::int32_t>()) {
        group = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(w.num_groups()));
        group &= ~static_cast<std::int32_t>(random() % 3);
      }
    }
    SCOPED_TRACE(testing::Message() << in << " columns, groups of " << group_size << ", round " << round);
    expect_right(w, plan_columns(w));
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
