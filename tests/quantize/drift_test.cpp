#include "quantize/drift.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "quantize/gptq.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kTokens = 4000;
constexpr std::int64_t kIn = 48;
constexpr std::int64_t kOut = 90;
constexpr std::int64_t kSplit = 70;  // outputs of the first of two linears: a full task of rows and a part

using Rows = std::vector<std::vector<double>>;

/// What a quantized model's linear sees, what the float model's sees, and its weights.
class DriftTest : public ::testing::Test {
 protected:
  DriftTest()
      : wanted_(correlated_inputs(kTokens, kIn, 1)),
        inputs_(Tensor::copy_of(wanted_)),
        weight_(random_matrix(kOut, kIn, 7)),
        residual_(random_matrix(kTokens, kOut, 8, 0.2f)) {
    // An error that depends on the input itself, as a quantized predecessor's does, and noise.
    const Tensor mixing = random_matrix(kIn, kIn, 5, 0.03f);
    const Tensor residual_mixing = random_matrix(kIn, kOut, 9, 0.1f);
    const Tensor noise = random_matrix(kTokens, kIn, 6, 0.05f);
    multiply_add({wanted_.matrix<float>()}, {mixing.matrix<float>()}, 1, 1, inputs_.matrix<float>());
    for (std::size_t i = 0; i < noise.span<float>().size(); ++i) inputs_.span<float>()[i] += noise.span<float>()[i];
    multiply_add({inputs_.matrix<float>()}, {residual_mixing.matrix<float>()}, 1, 1, residual_.matrix<float>());
    sum_up();
  }

  void sum_up() {
    gram_ = gram_of(inputs_, pool_);
    Tensor difference = Tensor::copy_of(wanted_);
    for (std::size_t i = 0; i < difference.span<float>().size(); ++i) {
      difference.span<float>()[i] -= inputs_.span<float>()[i];
    }
    drift_.input = Tensor::zeros(DType::F32, {kIn, kIn});
    accumulate_product(difference.matrix<float>(), inputs_.matrix<float>(), drift_.input.matrix<float>(), pool_);
    drift_.residual = Tensor::zeros(DType::F32, {kOut, kIn});
    accumulate_product(residual_.matrix<float>(), inputs_.matrix<float>(), drift_.residual.matrix<float>(), pool_);
  }

  Tensor corrected(double strength, int num_threads = 2) const {
    ThreadPool pool(num_threads);
    StageInputs inputs;
    inputs.gram = Tensor::copy_of(gram_);
    inputs.num_tokens = kTokens;
    std::vector<FloatLinear> linears;
    for (const auto& [first, count] : {std::pair{std::int64_t{0}, kSplit}, std::pair{kSplit, kOut - kSplit}}) {
      FloatLinear& linear = linears.emplace_back();
      linear.weight = Tensor::empty(DType::F32, {count, kIn});
      std::copy_n(weight_.matrix<float>().row(first), count * kIn, linear.weight.span<float>().begin());
    }
    correct_drift(linears, inputs, drift_, strength, pool);
    Tensor joined = Tensor::empty(DType::F32, {kOut, kIn});
    std::ranges::copy(linears[0].weight.span<float>(), joined.matrix<float>().row(0));
    std::ranges::copy(linears[1].weight.span<float>(), joined.matrix<float>().row(kSplit));
    return joined;
  }

  /// ‖W X' + R' - R - Q X‖² over the tokens.
  double error_of(const Tensor& quantized) const {
    double error = 0;
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t o = 0; o < kOut; ++o) {
        double difference = residual_.matrix<float>().row(t)[o];
        for (std::int64_t k = 0; k < kIn; ++k) {
          difference += static_cast<double>(weight_.matrix<float>().row(o)[k]) * wanted_.matrix<float>().row(t)[k] -
                        static_cast<double>(quantized.matrix<float>().row(o)[k]) * inputs_.matrix<float>().row(t)[k];
        }
        error += difference * difference;
      }
    }
    return error;
  }

  Tensor rounded_by_gptq(const Tensor& weight) {
    const GptqFactor factor = factorize(gram_.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
    return values_of(gptq(weight.matrix<float>(), factor, 16, {4, Symmetry::Asymmetric}, pool_));
  }

  ThreadPool pool_{2};
  Tensor wanted_;    // [tokens, in] x'
  Tensor inputs_;    // [tokens, in] x
  Tensor weight_;    // [out, in]
  Tensor residual_;  // [tokens, out] r' - r
  Tensor gram_;
  Drift drift_;
};

/// Solves w A = b for a symmetric positive definite A by elimination, all of it in f64.
std::vector<double> solve(Rows a, std::vector<double> b) {
  const std::size_t n = b.size();
  for (std::size_t p = 0; p < n; ++p) {
    for (std::size_t i = p + 1; i < n; ++i) {
      const double factor = a[i][p] / a[p][p];
      for (std::size_t j = p; j < n; ++j) a[i][j] -= factor * a[p][j];
      b[i] -= factor * b[p];
    }
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t j = i + 1; j < n; ++j) b[i] -= a[i][j] * b[j];
    b[i] /= a[i][i];
  }
  return b;
}

// The minimum of ‖W X' + R' - R - W' X‖² + λ ‖W' - W‖², from sums over tokens in f64: W' (H + λ) = Σ (W x' + r' - r) xᵀ
// + λ W.
TEST_F(DriftTest, CorrectedWeightsAreTheRidgeRegressionOntoTheFloatOutputs) {
  Rows gram(kIn, std::vector<double>(kIn));
  Rows cross(kIn, std::vector<double>(kIn));
  double mean = 0;
  for (std::size_t i = 0; i < kIn; ++i) {
    for (std::size_t j = 0; j < kIn; ++j) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        const float* x = inputs_.matrix<float>().row(t);
        gram[i][j] += static_cast<double>(x[i]) * x[j];
        cross[i][j] += static_cast<double>(wanted_.matrix<float>().row(t)[i]) * x[j];
      }
    }
    mean += gram[i][i] / kIn;
  }
  for (std::size_t i = 0; i < kIn; ++i) {
    gram[i][i] += kDriftPriorTokens / kTokens * mean;
    cross[i][i] += kDriftPriorTokens / kTokens * mean;
  }
  const Tensor weight = corrected(1);
  double largest_change = 0;
  for (std::int64_t o = 0; o < kOut; ++o) {
    std::vector<double> target(kIn);
    for (std::size_t j = 0; j < kIn; ++j) {
      for (std::size_t i = 0; i < kIn; ++i) target[j] += weight_.matrix<float>().row(o)[i] * cross[i][j];
      for (std::int64_t t = 0; t < kTokens; ++t) {
        target[j] += static_cast<double>(residual_.matrix<float>().row(t)[o]) * inputs_.matrix<float>().row(t)[j];
      }
    }
    const std::vector<double> expected = solve(gram, target);
    for (std::size_t j = 0; j < kIn; ++j) {
      // f32 sums under a Hessian whose condition the damping bounds by a few hundred.
      EXPECT_NEAR(weight.matrix<float>().row(o)[j], expected[j], 1e-4);
      largest_change = std::max(largest_change, std::abs(expected[j] - weight_.matrix<float>().row(o)[j]));
    }
  }
  EXPECT_GT(largest_change, 0.1);
}

TEST_F(DriftTest, GptqOnCorrectedWeightsComesCloserToTheFloatOutputs) {
  const double plain = error_of(rounded_by_gptq(weight_));
  const double half = error_of(rounded_by_gptq(corrected(0.5)));
  const double whole = error_of(rounded_by_gptq(corrected(1)));
  EXPECT_LT(half, 0.8 * plain);
  EXPECT_LT(whole, half);
}

TEST_F(DriftTest, StrengthScalesTheChange) {
  const Tensor half = corrected(0.5);
  const Tensor whole = corrected(1);
  for (std::size_t i = 0; i < weight_.span<float>().size(); ++i) {
    const float w = weight_.span<float>()[i];
    EXPECT_NEAR(half.span<float>()[i] - w, 0.5f * (whole.span<float>()[i] - w), 1e-5);
  }
}

TEST_F(DriftTest, InputsThatNoTokenReachesKeepTheirWeights) {
  for (std::int64_t t = 0; t < kTokens; ++t) inputs_.matrix<float>().row(t)[5] = 0;
  sum_up();
  const Tensor weight = corrected(1);
  for (std::int64_t o = 0; o < kOut; ++o) {
    EXPECT_EQ(weight.matrix<float>().row(o)[5], weight_.matrix<float>().row(o)[5]);
    for (std::int64_t k = 0; k < kIn; ++k) ASSERT_TRUE(std::isfinite(weight.matrix<float>().row(o)[k]));
  }
}

TEST_F(DriftTest, BytesDoNotDependOnThreads) {
  EXPECT_TRUE(same_bytes(corrected(0.7, 1), corrected(0.7, 3)));
}

}  // namespace
}  // namespace nibble::quantize
