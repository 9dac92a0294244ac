#include "eval/log_probs.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "eval/statistics.h"

namespace nibble::eval {
namespace {

TEST(LogProbs, OfUniformLogitsAreMinusLogOfTheVocabulary) {
  const std::vector<float> logits(1000, -7.25f);
  EXPECT_NEAR(log_prob(logits, summarize(logits), 123), -std::log(1000.0), 1e-12);
}

TEST(LogProbs, DoNotOverflowOnLargeLogits) {
  const std::array<float, 3> logits{30000.f, 29999.f, -30000.f};
  // softmax(1, 0, -inf) by hand
  EXPECT_NEAR(log_prob(logits, summarize(logits), 1), -std::log(1 + std::exp(1.0)), 1e-7);
}

TEST(LogProbs, TheLowestIdWinsATie) {
  EXPECT_EQ(summarize(std::array<float, 4>{1.f, 2.f, 2.f, 0.f}).top_token, 1);
}

double divergence(std::span<const float> p, std::span<const float> q) {
  return kl_divergence(p, summarize(p), q, summarize(q));
}

TEST(KlDivergence, OfKnownDistributionsIsTheirs) {
  const std::array<double, 3> p{0.5, 0.25, 0.25};
  const std::array<double, 3> q{0.1, 0.1, 0.8};
  std::array<float, 3> p_logits{};
  std::array<float, 3> q_logits{};
  double expected = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    p_logits[i] = static_cast<float>(std::log(p[i])) + 5.f;  // softmax ignores shifts
    q_logits[i] = static_cast<float>(std::log(q[i])) - 3.f;
    expected += p[i] * std::log(p[i] / q[i]);
  }
  EXPECT_NEAR(divergence(p_logits, q_logits), expected, 1e-6);
}

TEST(KlDivergence, IsNotSymmetric) {
  const std::array<float, 2> p{0.f, std::log(9.f)};  // 0.1, 0.9
  const std::array<float, 2> q{0.f, 0.f};            // 0.5, 0.5
  EXPECT_NEAR(divergence(p, q), 0.1 * std::log(0.2) + 0.9 * std::log(1.8), 1e-6);
  EXPECT_NEAR(divergence(q, p), 0.5 * std::log(5.0) + 0.5 * std::log(5.0 / 9.0), 1e-6);
}

TEST(KlDivergence, OfARowToItselfAndToAShiftedOneIsZero) {
  std::vector<float> row(50000);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(std::sin(static_cast<double>(i)) * 12);
  std::vector<float> shifted = row;
  for (float& logit : shifted) logit += 4.f;  // exact up to f32 rounding of the sum
  EXPECT_EQ(divergence(row, row), 0);
  EXPECT_LT(divergence(row, shifted), 1e-6);
}

TEST(KlDivergence, SkipsTokensThatTheBaselineRulesOut) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::array<float, 3> p{0.f, 0.f, -kInfinity};
  EXPECT_NEAR(divergence(p, std::array<float, 3>{0.f, 0.f, -kInfinity}), 0, 1e-12);
  EXPECT_EQ(divergence(p, std::array<float, 3>{0.f, -kInfinity, 0.f}), kInfinity);
}

TEST(KlDivergence, OfNotANumberIsNotANumber) {
  const std::array<float, 2> p{0.f, 1.f};
  EXPECT_TRUE(std::isnan(divergence(p, std::array<float, 2>{std::nanf(""), 1.f})));
}

TEST(StandardError, OfAnAccuracyIsThatOfABinomialWithNMinusOne) {
  const std::vector<double> samples{1, 1, 1, 0};  // p = 0.75
  EXPECT_NEAR(standard_error(samples), std::sqrt(0.75 * 0.25 / 3), 1e-12);
}

TEST(StandardError, OfOneSampleIsUnknown) {
  EXPECT_TRUE(std::isnan(standard_error(std::vector<double>{1})));
}

TEST(StandardError, OfPairsSeesOnlyWhatDiffers) {
  const std::vector<double> a{1, 0, 1, 0};
  EXPECT_EQ(paired_standard_error(a, a), 0);
  const std::vector<double> b{0, 0, 1, 0};  // differences 1 0 0 0: deviation 0.5
  EXPECT_NEAR(paired_standard_error(a, b), 0.5 / 2, 1e-12);
}

}  // namespace
}  // namespace nibble::eval
