#include "backend/host_sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace nibble::backend {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

SampledToken sample(std::vector<float> logits, const SamplingRow& row) {
  return sample_row(logits, row);
}

/// How often each token comes out of `count` draws that differ in position only.
std::map<std::int32_t, double> frequencies(const std::vector<float>& logits, SamplingRow row, int count) {
  std::map<std::int32_t, double> result;
  for (int i = 0; i < count; ++i) {
    row.position = static_cast<std::uint64_t>(i);
    result[sample(logits, row).token] += 1.0 / count;
  }
  return result;
}

TEST(HostSampling, GreedyTakesTheLowestIdOfATie) {
  EXPECT_EQ(sample({0, 3, 1, 3}, {.temperature = 0}).token, 1);
}

TEST(HostSampling, DrawsWithTheSoftmaxProbabilities) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  const auto found = frequencies(logits, {.temperature = 1, .seed = 42}, 20'000);
  // Three standard deviations of a binomial frequency over 20,000 draws are about 0.011.
  EXPECT_NEAR(found.at(0), 0.5, 0.011);
  EXPECT_NEAR(found.at(1), 0.3, 0.011);
  EXPECT_NEAR(found.at(2), 0.2, 0.011);
}

TEST(HostSampling, TemperatureSharpens) {
  const std::vector<float> logits{1, 0};
  const auto found = frequencies(logits, {.temperature = 0.5f, .seed = 1}, 20'000);
  EXPECT_NEAR(found.at(0), 1 / (1 + std::exp(-2.0)), 0.011);
}

TEST(HostSampling, TopKTopPAndMinPLeaveOnlyTheBest) {
  std::vector<float> logits(1000, -1);
  logits[10] = 5;
  logits[20] = 4.9f;
  logits[30] = 4.8f;
  const auto tokens = [&](const SamplingRow& row) {
    std::vector<std::int32_t> seen;
    for (const auto& [token, frequency] : frequencies(logits, row, 500)) seen.push_back(token);
    return seen;
  };
  EXPECT_THAT(tokens({.temperature = 1, .top_k = 2, .seed = 3}), testing::ElementsAre(10, 20));
  EXPECT_THAT(tokens({.temperature = 1, .min_p = 0.5f, .seed = 3}), testing::ElementsAre(10, 20, 30));
  EXPECT_THAT(tokens({.temperature = 1, .top_p = 0.01f, .seed = 3}), testing::ElementsAre(10));
}

TEST(HostSampling, TopPKeepsTheTokenThatCrossesTheLimit) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  const auto found = frequencies(logits, {.temperature = 1, .top_p = 0.6f, .seed = 9}, 5'000);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_NEAR(found.at(0), 0.625, 0.03);
}

TEST(HostSampling, TopPWorksBeyondTheFirstSortedStretch) {
  // 1000 equal tokens: half of the mass is 500 of them, more than one partial sort holds.
  const auto found = frequencies(std::vector<float>(1000, 0.0f), {.temperature = 1, .top_p = 0.5f, .seed = 5}, 5'000);
  EXPECT_LT(found.rbegin()->first, 501);
  EXPECT_GT(found.size(), 450u);
}

TEST(HostSampling, TheDrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits(100, 0.0f);
  const SamplingRow row{.temperature = 1, .seed = 7, .position = 3};
  EXPECT_EQ(sample(logits, row).token, sample(logits, row).token);
  EXPECT_NE(frequencies(logits, {.temperature = 1, .seed = 7}, 20),
            frequencies(logits, {.temperature = 1, .seed = 8}, 20));
}

TEST(HostSampling, PenaltiesFollowTheirDefinitions) {
  const std::vector<TokenCount> counts{{.token = 0, .in_prompt = 1, .in_output = 0},
                                       {.token = 1, .in_prompt = 0, .in_output = 2}};
  // Repetition divides positive logits of seen tokens, multiplies negative ones.
  EXPECT_EQ(sample({4, 4, 2.5f}, {.temperature = 0, .repetition_penalty = 2, .counts = counts}).token, 2);
  EXPECT_EQ(sample({-1, -1, -1.5f}, {.temperature = 0, .repetition_penalty = 2, .counts = counts}).token, 2);
  // Presence and frequency look at the output only: token 1 loses 0.5 + 2 * 0.25.
  EXPECT_EQ(
      sample({0, 0.9f, -1}, {.temperature = 0, .presence_penalty = 0.5f, .frequency_penalty = 0.25f, .counts = counts})
          .token,
      0);
  EXPECT_EQ(
      sample({0, 1.1f, -1}, {.temperature = 0, .presence_penalty = 0.5f, .frequency_penalty = 0.25f, .counts = counts})
          .token,
      1);
}

TEST(HostSampling, BannedMaskedAndBiasedTokens) {
  const std::vector<std::int32_t> banned{0};
  EXPECT_EQ(sample({9, 1, 2}, {.temperature = 0, .banned = banned}).token, 2);
  const std::vector<std::uint32_t> mask{0b010};
  EXPECT_EQ(sample({9, 1, 2}, {.temperature = 0, .allowed_mask = mask}).token, 1);
  const std::vector<std::pair<std::int32_t, float>> bias{{1, 100.0f}};
  EXPECT_EQ(sample({9, 1, 2}, {.temperature = 0, .logit_bias = bias}).token, 1);
}

TEST(HostSampling, LogprobsAreOfTheRawLogits) {
  const std::vector<std::int32_t> banned{2};
  const SampledToken sampled = sample({1, 2, 3}, {.temperature = 0, .banned = banned, .num_logprobs = 2});
  const double log_sum = std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0));
  EXPECT_EQ(sampled.token, 1);
  EXPECT_NEAR(sampled.logprob, 2 - log_sum, 1e-6);
  ASSERT_EQ(sampled.top_logprobs.size(), 2u);
  EXPECT_EQ(sampled.top_logprobs[0].first, 2);
  EXPECT_NEAR(sampled.top_logprobs[1].second, 2 - log_sum, 1e-6);
}

TEST(HostSampling, SaysWhenThereIsNothingFinite) {
  EXPECT_FALSE(sample({0, kNan}, {}).is_finite);
  EXPECT_FALSE(sample({-kInfinity, -kInfinity}, {}).is_finite);
  EXPECT_FALSE(sample({kInfinity, 0}, {}).is_finite);
  EXPECT_TRUE(sample({-kInfinity, 0}, {}).is_finite);
}

TEST(HostSampling, ExtremeTemperaturesStayFinite) {
  EXPECT_EQ(sample({1, 2}, {.temperature = 1e-30f}).token, 1);
  EXPECT_TRUE(sample({1e30f, -1e30f}, {.temperature = 1e30f}).is_finite);
}

}  // namespace
}  // namespace nibble::backend
