#include "quantize/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quantize/output_error.h"
#include "quantize/rtn.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

constexpr GridFormat kFormats[] = {{4, Symmetry::Symmetric}, {4, Symmetry::Asymmetric}, {3, Symmetry::Asymmetric}};

double error_of(const Tensor& weight, const weights::GroupedIntWeights& quantized, const Tensor& gram,
                ThreadPool& pool) {
  const Tensor back = values_of(quantized);
  return output_error(weight.matrix<float>(), back.matrix<float>(), gram.matrix<float>(), pool);
}

class GptqTest : public ::testing::Test {
 protected:
  weights::GroupedIntWeights solve(const Tensor& weight, const Tensor& gram, ColumnOrder order,
                                   const GridFormat& format, std::int64_t group_size = 32) {
    const GptqFactor factor = factorize(gram.matrix<float>(), order, 0.01);
    return gptq(weight.matrix<float>(), factor, group_size, format, pool_);
  }
  ThreadPool pool_{2};
};

TEST_F(GptqTest, BeatsRoundToNearestOnCorrelatedInputs) {
  const Tensor weight = random_matrix(96, 192, 1);
  const Tensor gram = gram_of(correlated_inputs(600, 192, 2), pool_);
  for (const GridFormat& format : kFormats) {
    const double nearest = error_of(weight, round_to_nearest(weight.matrix<float>(), 32, format, pool_), gram, pool_);
    const std::vector<float> importance = factorize(gram.matrix<float>(), ColumnOrder::Natural, 0.01).importance;
    const double weighted =
        error_of(weight, round_to_weighted_grid(weight.matrix<float>(), importance, 32, format, pool_), gram, pool_);
    for (const ColumnOrder order : {ColumnOrder::Natural, ColumnOrder::FallingDiagonal, ColumnOrder::GroupIndex}) {
      const double error = error_of(weight, solve(weight, gram, order, format), gram, pool_);
      EXPECT_LT(error, 0.5 * nearest);
      EXPECT_LT(error, 0.7 * weighted);
    }
  }
}

TEST_F(GptqTest, EqualsRoundingWhenInputsAreUncorrelated) {
  const Tensor weight = random_matrix(70, 96, 3);
  for (const GridFormat& format : kFormats) {
    const auto quantized = solve(weight, identity(96), ColumnOrder::FallingDiagonal, format);
    const std::vector<float> ones(96, 1.0f);
    const auto rounded = round_to_weighted_grid(weight.matrix<float>(), ones, 32, format, pool_);
    EXPECT_TRUE(same_bytes(quantized.codes, rounded.codes));
    EXPECT_TRUE(same_bytes(quantized.scales, rounded.scales));
    EXPECT_TRUE(same_bytes(quantized.zeros, rounded.zeros));
  }
}

TEST_F(GptqTest, ImportantColumnsFirstIsBetterOnAverage) {
  double natural = 0;
  double falling = 0;
  for (std::uint32_t seed = 0; seed < 8; ++seed) {
    const Tensor weight = random_matrix(64, 128, 10 + seed);
    const Tensor gram = gram_of(correlated_inputs(400, 128, 100 + seed), pool_);
    natural += error_of(weight, solve(weight, gram, ColumnOrder::Natural, kFormats[1]), gram, pool_);
    falling += error_of(weight, solve(weight, gram, ColumnOrder::FallingDiagonal, kFormats[1]), gram, pool_);
  }
  EXPECT_LT(falling, natural);
}

TEST_F(GptqTest, GroupIndexGroupsColumnsOfSimilarImportance) {
  const Tensor weight = random_matrix(64, 128, 5);
  const Tensor gram = gram_of(correlated_inputs(400, 128, 6), pool_);
  const auto quantized = solve(weight, gram, ColumnOrder::GroupIndex, kFormats[0]);
  ASSERT_TRUE(quantized.has_g_idx());
  const auto g_idx = quantized.g_idx.span<std::int32_t>();
  for (std::int64_t a = 0; a < 128; ++a) {
    for (std::int64_t b = 0; b < 128; ++b) {
      if (g_idx[static_cast<std::size_t>(a)] < g_idx[static_cast<std::size_t>(b)]) {
        EXPECT_GE(gram.matrix<float>().row(a)[a], gram.matrix<float>().row(b)[b]);
      }
    }
  }
  EXPECT_FALSE(solve(weight, gram, ColumnOrder::FallingDiagonal, kFormats[0]).has_g_idx());
}

TEST_F(GptqTest, BitsDoNotDependOnThreadsOrRun) {
  ThreadPool one(1);
  const Tensor weight = random_matrix(200, 256, 7);
  const Tensor gram = gram_of(correlated_inputs(300, 256, 8), pool_);
  const auto first = solve(weight, gram, ColumnOrder::FallingDiagonal, kFormats[1]);
  const auto second = solve(weight, gram, ColumnOrder::FallingDiagonal, kFormats[1]);
  const GptqFactor factor = factorize(gram.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
  const auto single = gptq(weight.matrix<float>(), factor, 32, kFormats[1], one);
  EXPECT_TRUE(same_bytes(first.codes, second.codes));
  EXPECT_TRUE(same_bytes(first.codes, single.codes));
  EXPECT_TRUE(same_bytes(first.scales, single.scales));
}

TEST_F(GptqTest, DeadColumnsAreKeptAndRoundToNearest) {
  const Tensor weight = random_matrix(64, 64, 9);
  Tensor inputs = correlated_inputs(300, 64, 10);
  for (std::int64_t t = 0; t < 300; ++t) inputs.matrix<float>().row(t)[17] = 0;
  const auto quantized = solve(weight, gram_of(inputs, pool_), ColumnOrder::FallingDiagonal, kFormats[1], 64);
  const Tensor back = values_of(quantized);
  const Tensor scales = to_dtype(quantized.scales, DType::F32);
  for (std::int64_t o = 0; o < 64; ++o) {
    const float w = weight.matrix<float>().row(o)[17];
    const float scale = scales.matrix<float>().row(o)[0];
    const float zero = quantized.zeros.matrix<std::int16_t>().row(o)[0];
    const float inside = std::clamp(w, -zero * scale, (15 - zero) * scale);
    EXPECT_NEAR(back.matrix<float>().row(o)[17], inside, 0.501f * scale);
  }
}

TEST_F(GptqTest, SingularHessianSurvivesByDamping) {
  const Tensor weight = random_matrix(64, 128, 11);
  const Tensor few = random_matrix(3, 128, 12);  // rank 3
  const Tensor gram = gram_of(few, pool_);
  EXPECT_LT(error_of(weight, solve(weight, gram, ColumnOrder::FallingDiagonal, kFormats[1]), gram, pool_),
            error_of(weight, round_to_nearest(weight.matrix<float>(), 32, kFormats[1], pool_), gram, pool_));
  // Without any damping the factorization itself has to raise it.
  EXPECT_GT(factorize(gram.matrix<float>(), ColumnOrder::Natural, 0).damp_percent, 0);
  EXPECT_EQ(factorize(identity(16).matrix<float>(), ColumnOrder::Natural, 0).damp_percent, 0);
}

TEST_F(GptqTest, NoTokensAtAllMeansRounding) {
  const Tensor weight = random_matrix(64, 64, 13);
  const Tensor nothing = Tensor::zeros(DType::F32, {64, 64});
  const auto quantized = solve(weight, nothing, ColumnOrder::FallingDiagonal, kFormats[1]);
  const std::vector<float> ones(64, 1.0f);
  EXPECT_TRUE(
      same_bytes(quantized.codes, round_to_weighted_grid(weight.matrix<float>(), ones, 32, kFormats[1], pool_).codes));
}

TEST_F(GptqTest, NotANumberInTheInputsIsAnError) {
  Tensor gram = identity(16);
  gram.matrix<float>().row(2)[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(factorize(gram.matrix<float>(), ColumnOrder::Natural, 0.01), Error);
}

}  // namespace
}  // namespace nibble::quantize
