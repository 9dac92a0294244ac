#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <utility>

#include "core/expect_error.h"
#include "weights/linear_weights.h"
#include "weights/random_weights.h"

namespace nibble::weights {
namespace {

LinearWeights make(const GroupedIntShape& shape = {}) {
  std::mt19937 random(3);
  return std::move(make_random_grouped_int(shape, random).weights);
}

GroupedIntWeights& grouped(LinearWeights& weights) {
  return std::get<GroupedIntWeights>(weights);
}

TEST(GroupedInt, DequantizesByItsDefinition) {
  std::mt19937 random(1);
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    for (const GroupOrder order : {GroupOrder::AsStored, GroupOrder::Shuffled}) {
      RandomGroupedInt made = make_random_grouped_int(
          {.out_features = 5, .in_features = 70, .bits = bits, .group_size = 32, .order = order}, random);
      std::vector<float> expected;
      for (std::int64_t o = 0; o < 5; ++o) {
        for (std::int64_t i = 0; i < 70; ++i) expected.push_back(made.value(o, i));
      }
      const Tensor dense = dequantize(std::move(made.weights));
      const auto values = dense.span<float>();
      ASSERT_EQ(std::vector<float>(values.begin(), values.end()), expected) << bits << " bits";
    }
  }
}

TEST(GroupedInt, DescribesItself) {
  EXPECT_EQ(describe(make({.bits = 4, .group_size = 32})), "int4 g32 asym");
  LinearWeights symmetric = make({.bits = 8, .group_size = 64, .order = GroupOrder::Shuffled});
  for (std::int16_t& zero : grouped(symmetric).zeros.span<std::int16_t>()) zero = 128;
  EXPECT_EQ(describe(symmetric), "int8 g64 sym desc_act");
}

/// Slices of every rank, side by side, are the whole.
void expect_rejoins(const GroupedIntShape& shape, std::int64_t ranks) {
  const LinearWeights whole = make(shape);
  const Tensor dense = dequantize(whole);
  const std::int64_t rows = shape.out_features / ranks;
  const std::int64_t columns = shape.in_features / ranks;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const LinearWeights outputs = slice_outputs(whole, rank * rows, rows);
    const LinearWeights inputs = slice_inputs(whole, rank * columns, columns);
    EXPECT_NO_THROW(validate(outputs));
    EXPECT_NO_THROW(validate(inputs));
    const Tensor output_values = dequantize(outputs);
    const Tensor input_values = dequantize(inputs);
    for (std::int64_t o = 0; o < shape.out_features; ++o) {
      for (std::int64_t i = 0; i < shape.in_features; ++i) {
        const float expected = dense.matrix<float>().row(o)[i];
        if (o / rows == rank) {
          ASSERT_EQ(output_values.matrix<float>().row(o % rows)[i], expected);
        }
        if (i / columns == rank) {
          ASSERT_EQ(input_values.matrix<float>().row(o)[i % columns], expected);
        }
      }
    }
  }
}

TEST(GroupedInt, SlicesOfATensorParallelSplitRejoin) {
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    expect_rejoins({.out_features = 8, .in_features = 128, .bits = bits, .group_size = 32}, 4);
    expect_rejoins({.out_features = 8, .in_features = 128, .bits = bits, .order = GroupOrder::Shuffled}, 2);
  }
}

TEST(GroupedInt, SlicesMayBeginInsideAGroup) {
  for (const std::int32_t bits : {3, 4}) {
    expect_rejoins({.out_features = 8, .in_features = 120, .bits = bits, .group_size = 40}, 8);
  }
  const LinearWeights whole = make({.in_features = 120, .group_size = 40});
  LinearWeights slice = slice_inputs(whole, 50, 40);
  EXPECT_EQ(grouped(slice).first_group_offset, 10);
  EXPECT_EQ(grouped(slice).num_groups(), 2);
  const Tensor again = dequantize(slice_inputs(slice, 5, 7));  // a slice of a slice
  EXPECT_EQ(again.span<float>()[0], dequantize(whole).span<float>()[55]);
}

TEST(GroupedInt, RefusesWhatContradictsItself) {
  const auto expect_refused = [](ErrorCode code, const char* part, auto&& change) {
    LinearWeights weights = make({.order = GroupOrder::Shuffled});
    change(grouped(weights));
    expect_error(code, part, [&] { validate(weights); });
  };
  EXPECT_NO_THROW(validate(make({.order = GroupOrder::Shuffled})));
  expect_refused(ErrorCode::Unsupported, "bits 5", [](GroupedIntWeights& w) { w.bits = 5; });
  expect_refused(ErrorCode::Corrupt, "group_size 0", [](GroupedIntWeights& w) { w.group_size = 0; });
  expect_refused(ErrorCode::Corrupt, "packed codes", [](GroupedIntWeights& w) { w.in_features = 72; });
  expect_refused(ErrorCode::Corrupt, "zeros: expected shape",
                 [](GroupedIntWeights& w) { w.zeros = Tensor::zeros(DType::I16, {8, 3}); });
  expect_refused(ErrorCode::Corrupt, "zeros: 17", [](GroupedIntWeights& w) { w.zeros.span<std::int16_t>()[3] = 17; });
  expect_refused(ErrorCode::Corrupt, "zeros: -1", [](GroupedIntWeights& w) { w.zeros.span<std::int16_t>()[3] = -1; });
  expect_refused(ErrorCode::Corrupt, "scales holds NaN",
                 [](GroupedIntWeights& w) { w.scales.span<Half>()[5].bits = 0x7c00; });
  expect_refused(ErrorCode::Corrupt, "g_idx: group 2",
                 [](GroupedIntWeights& w) { w.g_idx.span<std::int32_t>()[0] = 2; });
  expect_refused(ErrorCode::Corrupt, "g_idx: group -1",
                 [](GroupedIntWeights& w) { w.g_idx.span<std::int32_t>()[0] = -1; });
}

}  // namespace
}  // namespace nibble::weights
