#include "verify/interleaving.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace nibble::verify {
namespace {

constexpr std::int64_t kUnits = 64;
constexpr std::int64_t kWidth = 40;

/// Vectors of two linears that share a direction, unit by unit.
struct Pair {
  std::vector<float> a = std::vector<float>(kUnits * kWidth);
  std::vector<float> b = std::vector<float>(kUnits * kWidth);

  Pair() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < a.size(); ++i) {
      a[i] = normal(random);
      b[i] = a[i] + normal(random);
    }
  }
};

TEST(Interleaving, TheOrdersUndoEachOther) {
  for (std::int64_t i = 0; i < 16; ++i) EXPECT_EQ(from_awq_order(to_awq_order(i)), i);
  EXPECT_EQ(to_awq_order(9), 10);
  EXPECT_EQ(from_awq_order(10), 9);
}

TEST(Interleaving, UnrelatedVectorsAlignByChanceAndRelatedOnesDoNot) {
  const Pair pair;
  EXPECT_GT(alignment({pair.a, kWidth}, {pair.b, kWidth}), 10);
  const std::vector<float> others(pair.a.rbegin(), pair.a.rend());
  EXPECT_LT(alignment({others, kWidth}, {pair.b, kWidth}), 2);
}

TEST(Interleaving, TheRightOrderBringsUnitsBackInLine) {
  const Pair pair;
  for (const auto along : {InterleavedAlong::Units, InterleavedAlong::Width}) {
    const UnitVectors a{pair.a, kWidth};
    const std::vector<float> wrong = reordered(a, along, Reading::PlainAsAwq);
    const std::vector<float> right = reordered({wrong, kWidth}, along, Reading::AwqAsPlain);
    EXPECT_EQ(right, pair.a);
    EXPECT_LT(alignment({wrong, kWidth}, {pair.b, kWidth}), alignment(a, {pair.b, kWidth}) / 2);
  }
  EXPECT_EQ(reordered({pair.a, kWidth}, InterleavedAlong::Nothing, Reading::AwqAsPlain), pair.a);
}

}  // namespace
}  // namespace nibble::verify
