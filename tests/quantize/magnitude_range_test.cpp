#include "quantize/magnitude_range.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace nibble::quantize {
namespace {

std::vector<float> normal_values(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

Matrix<const float> rows_of(const std::vector<float>& values, std::int64_t cols) {
  return {values.data(), static_cast<std::int64_t>(values.size()) / cols, cols, cols};
}

TEST(MagnitudeRange, IsTheLargestMagnitudeOfAllBatches) {
  ThreadPool pool(2);
  MagnitudeRange range;
  EXPECT_EQ(range.range(), 0);
  range.add(rows_of({1, -7, 2, 3}, 2), pool);
  range.add(rows_of({0.5f, 4}, 2), pool);
  EXPECT_EQ(range.range(), 7);
}

TEST(MagnitudeRange, CoversThePercentileToABinOfTwoToTheMinusEighth) {
  const std::vector<float> values = normal_values(60'000, 1);
  std::vector<float> sorted;
  for (const float value : values) sorted.push_back(std::abs(value));
  std::ranges::sort(sorted);
  ThreadPool pool(2);
  for (const double percentile : {50.0, 99.0, 99.99}) {
    MagnitudeRange range(percentile);
    range.add(rows_of(values, 100), pool);
    const float exact = sorted[static_cast<std::size_t>(std::ceil(60'000 * percentile / 100)) - 1];
    EXPECT_GE(range.range(), exact);
    EXPECT_LE(range.range(), exact * (1 + 1.0f / 256));
  }
}

TEST(MagnitudeRange, NeverExceedsTheLargestMagnitude) {
  ThreadPool pool(1);
  MagnitudeRange range(99.9);
  range.add(rows_of({1.001f, 1.001f}, 2), pool);
  EXPECT_EQ(range.range(), 1.001f);
}

TEST(MagnitudeRange, DependsOnNeitherThreadsNorBatches) {
  const std::vector<float> values = normal_values(6'000, 2);
  ThreadPool one(1);
  ThreadPool three(3);
  MagnitudeRange whole(99.5);
  whole.add(rows_of(values, 60), three);
  MagnitudeRange parts(99.5);
  parts.add(rows_of(values, 60).block(0, 30), one);
  parts.add(rows_of(values, 60).block(30, 70), one);
  EXPECT_EQ(whole.range(), parts.range());
}

TEST(MagnitudeRange, IsInfiniteWhereAValueIsNoNumber) {
  ThreadPool pool(1);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const double percentile : {50.0, 100.0}) {
      MagnitudeRange range(percentile);
      range.add(rows_of({1, bad, 2, 3}, 2), pool);
      EXPECT_EQ(range.range(), INFINITY);
    }
  }
}

}  // namespace
}  // namespace nibble::quantize
