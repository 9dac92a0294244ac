#include "eval/windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/error.h"
#include "eval/fake_engine.h"
#include "eval/log_probs.h"
#include "eval/logit_stream.h"
#include "eval/statistics.h"
#include "eval/task.h"

namespace nibble::eval {
namespace {

std::vector<std::int32_t> some_tokens(std::int64_t count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 37 % 251);
  return tokens;
}

std::vector<WindowScores> score(std::vector<Model> models, const std::vector<std::int32_t>& tokens,
                                std::int64_t window_len) {
  ThreadPool pool(2);
  const auto num_windows = static_cast<std::int64_t>(tokens.size()) / window_len;
  return score_windows(models, {tokens, window_len, num_windows, models.size() > 1}, pool);
}

TEST(Windows, PredictAllButTheFirstTokenOfEachWindow) {
  FakeEngine engine(uniform_logits());
  const auto scores = score({{"a", &engine}}, some_tokens(35), 10);
  EXPECT_EQ(scores[0].negative_log_likelihoods.size(), 3u * 9u);
  EXPECT_THAT(scores[0].negative_log_likelihoods, testing::Each(testing::DoubleNear(std::log(256.0), 1e-12)));
  EXPECT_THAT(engine.scored, testing::SizeIs(3));
}

TEST(Windows, GiveEachTokenItsOwnLogLikelihood) {
  // The right next token gets log-odds that depend on its position, so a shift by one would show.
  const std::vector<std::int32_t> tokens = some_tokens(12);
  FakeEngine engine(
      [&](std::span<const std::int32_t> context, std::span<float> logits) {
        std::ranges::fill(logits, 0.f);
        if (context.size() < tokens.size()) {
          logits[static_cast<std::size_t>(tokens[context.size()])] = static_cast<float>(context.size());
        }
      },
      5);
  const auto scores = score({{"a", &engine}}, tokens, 12);
  for (std::size_t i = 0; i < 11; ++i) {
    const double odds = std::exp(static_cast<double>(i + 1));
    EXPECT_NEAR(scores[0].negative_log_likelihoods[i], -std::log(odds / (odds + 255)), 1e-6) << i;
  }
}

TEST(Windows, CompareEnginesWhoseTilesDiffer) {
  const std::vector<std::int32_t> tokens = some_tokens(23);
  FakeEngine baseline(random_logits(1), 7);
  FakeEngine same(random_logits(1), 3);
  FakeEngine other(random_logits(2), 64);
  const auto scores = score({{"baseline", &baseline}, {"same", &same}, {"other", &other}}, tokens, 23);
  EXPECT_TRUE(scores[0].divergences.empty());
  EXPECT_THAT(scores[1].divergences, testing::AllOf(testing::SizeIs(22), testing::Each(0.0)));
  EXPECT_EQ(mean(scores[1].agreements), 1);
  std::vector<float> p(256);
  std::vector<float> q(256);
  for (std::size_t i = 0; i < 22; ++i) {
    random_logits(1)(std::span(tokens).first(i + 1), p);
    random_logits(2)(std::span(tokens).first(i + 1), q);
    EXPECT_EQ(scores[2].divergences[i], kl_divergence(p, summarize(p), q, summarize(q)));
    EXPECT_EQ(scores[2].agreements[i], summarize(p).top_token == summarize(q).top_token ? 1 : 0);
  }
}

TEST(Windows, CountTokensOfEveryModel) {
  FakeEngine engine(uniform_logits());
  std::vector<Model> models{{"a", &engine}};
  ThreadPool pool(1);
  const auto tokens = some_tokens(30);
  score_windows(models, {tokens, 10, 3, false}, pool);
  EXPECT_EQ(models[0].scored_tokens, 30);
  EXPECT_GT(models[0].scoring_seconds, 0);
}

TEST(Windows, PassOnWhatAnEngineThrowsAndReleaseTheOther) {
  FakeEngine healthy(uniform_logits(), 2);
  FakeEngine failing(uniform_logits(), 3);
  failing.fail_at = 6;
  EXPECT_THROW(score({{"a", &healthy}, {"b", &failing}}, some_tokens(20), 20), Error);
  EXPECT_THROW(score({{"a", &failing}, {"b", &healthy}}, some_tokens(20), 20), Error);
}

TEST(LogitStream, EndsWithAnErrorWhereTheReaderAsksForMore) {
  FakeEngine engine(uniform_logits(), 8);
  const auto tokens = some_tokens(10);
  LogitStream stream(engine, tokens);
  EXPECT_EQ(stream.next().first_position, 0);
  EXPECT_EQ(stream.next().logits.rows, 2);
  EXPECT_THROW(stream.next(), Error);
  EXPECT_THROW(stream.next(), Error);
}

TEST(LogitStream, ComputesNothingBeforeItIsAsked) {
  FakeEngine engine(uniform_logits());
  const auto tokens = some_tokens(10);
  {
    const LogitStream stream(engine, tokens);
  }
  EXPECT_THAT(engine.scored, testing::IsEmpty());
}

}  // namespace
}  // namespace nibble::eval
