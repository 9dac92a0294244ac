#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "eval/fake_engine.h"
#include "eval/log_likelihood.h"
#include "eval/log_probs.h"
#include "eval/task.h"
#include "eval/text_file.h"

namespace nibble::eval {
namespace {

using testing::HasSubstr;

std::vector<TaskResult> run(const std::string& task, std::vector<Model>& models, const EvalOptions& options = {}) {
  TaskContext context(models, options, TaskContext::Compare::None);
  return make_task(task)->run(context);
}

/// Logits that make `favourite` e^boost times as likely as any other byte, wherever it stands.
FakeEngine::Logits favour(char favourite, float boost) {
  return [=](std::span<const std::int32_t>, std::span<float> logits) {
    std::ranges::fill(logits, 0.f);
    logits[static_cast<unsigned char>(favourite)] = boost;
  };
}

TEST(MultipleChoice, ChoosesTheLikeliestTextAndNormalisesByCharacters) {
  // Bytes cost 1 nat each, "z" less: "é" is one character of two bytes.
  const TextFile file("set.jsonl",
                      "{\"question\": \"q\", \"choices\": [\"ab\", \"zzzz\"], \"answer\": 1}\n"
                      "{\"question\": \"q\", \"choices\": [\"ab\", \"éé\"], \"answer\": 1}\n");
  FakeEngine engine(favour('z', 2));
  std::vector<Model> models{{"m", &engine}};
  const auto results = run("choice:" + file.string(), models);
  const double other = -std::log(255 + std::exp(2.0));
  const double z = other + 2;
  const Json& row = results[0].rows[0];
  EXPECT_NEAR(row["log_likelihoods"][0].get<double>(), 3 * other, 1e-6);  // " ab"
  EXPECT_NEAR(row["log_likelihoods"][1].get<double>(), other + 4 * z, 1e-6);
  EXPECT_EQ(row["chosen"], 0);
  EXPECT_EQ(row["chosen_norm"], 1);                 // 5 bytes over 4 characters beat 3 over 2
  EXPECT_EQ(results[0].rows[1]["chosen_norm"], 0);  // 3 * other / 2 > 5 * other / 2
  EXPECT_EQ(results[0].metrics[0].spec.name, "set");
  EXPECT_EQ(results[0].metrics[1].spec.name, "set_norm");
  EXPECT_THAT(results[0].metrics[0].samples, testing::ElementsAre(0, 0));
  EXPECT_THAT(results[0].metrics[1].samples, testing::ElementsAre(1, 0));
}

TEST(MultipleChoice, LettersOfOneQuestionShareOneForwardPass) {
  const TextFile file("mmlu.jsonl",
                      R"({"subject": "s", "question": "q", "choices": ["a", "b", "c", "d"], "answer": 2})");
  FakeEngine engine([](std::span<const std::int32_t> context, std::span<float> logits) {
    std::ranges::fill(logits, 0.f);
    if (context.back() == ' ') logits['C'] = 2;
  });
  std::vector<Model> models{{"m", &engine}};
  const auto results = run("choice:" + file.string(), models);
  ASSERT_EQ(engine.scored.size(), 1u);
  EXPECT_EQ(engine.scored[0].back(), ' ');  // "Answer: " without the letter
  EXPECT_EQ(results[0].rows[0]["chosen"], 2);
  EXPECT_EQ(results[0].metrics.size(), 1u);  // letters are all of one length
  EXPECT_EQ(results[0].metrics[0].value(), 1);
}

TEST(MultipleChoice, FillsTheBlankIntoTheContext) {
  const TextFile file("wino.jsonl", R"({"question": "so _ x", "choices": ["Ann", "Bea"], "answer": 1})");
  FakeEngine engine([](std::span<const std::int32_t> context, std::span<float> logits) {
    std::ranges::fill(logits, 0.f);
    if (context.back() == 'a') logits[' '] = 1;  // after "so Bea"
  });
  std::vector<Model> models{{"m", &engine}};
  const auto results = run("choice:" + file.string(), models);
  EXPECT_EQ(results[0].rows[0]["chosen"], 1);
  EXPECT_EQ(ByteTokenizer().decode(engine.scored[1], true), "so Bea ");
}

TEST(MultipleChoice, ATieGoesToTheFirstChoice) {
  const TextFile file("set.jsonl", R"({"question": "q", "choices": ["aa", "bb"], "answer": 1})");
  FakeEngine engine(uniform_logits());
  std::vector<Model> models{{"m", &engine}};
  EXPECT_EQ(run("choice:" + file.string(), models)[0].rows[0]["chosen"], 0);
}

TEST(MultipleChoice, ALimitTakesRowsSpreadOverTheFile) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n";
  const TextFile file("set.jsonl", text);
  FakeEngine engine(uniform_logits());
  std::vector<Model> models{{"m", &engine}};
  EvalOptions options;
  options.limit = 4;
  const auto results = run("choice:" + file.string(), models, options);
  std::vector<int> lines;
  for (const Json& row : results[0].rows) lines.push_back(row["line"]);
  EXPECT_THAT(lines, testing::ElementsAre(1, 3, 6, 8));
}

TEST(MultipleChoice, AChoiceLongerThanTheContextNamesItsLine) {
  const TextFile file("set.jsonl", R"({"question": "q", "choices": ["0123456789", "b"], "answer": 0})");
  FakeEngine engine(uniform_logits());
  engine.max_len = 8;
  std::vector<Model> models{{"m", &engine}};
  try {
    run("choice:" + file.string(), models);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("set.jsonl:1: a continuation of 11 tokens does not fit"));
  }
}

TEST(LogLikelihood, LeavesOutTheFirstTokensOfALongContext) {
  FakeEngine engine(random_logits(5));
  engine.max_len = 6;
  Model model{"m", &engine};
  const Continuation continuation{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 2};
  const double sum = log_likelihoods(model, std::span(&continuation, 1))[0];
  EXPECT_THAT(engine.scored[0], testing::ElementsAre(4, 5, 6, 7, 8, 9));
  std::vector<float> logits(256);
  double expected = 0;
  for (const std::size_t last : {8u, 9u}) {
    random_logits(5)(std::vector<std::int32_t>{static_cast<std::int32_t>(last - 1), static_cast<std::int32_t>(last)},
                     logits);
    expected += log_prob(logits, summarize(logits), static_cast<std::int32_t>(last + 1));
  }
  EXPECT_NEAR(sum, expected, 1e-12);
}

TEST(SplitTokens, MovesSpacesAtTheContextsEndToTheContinuation) {
  const ByteTokenizer tokenizer;
  const Continuation split = split_tokens(tokenizer, "ab  ", "cd");
  EXPECT_EQ(split.tokens.size(), 6u);
  EXPECT_EQ(split.num_scored, 4);
}

TEST(SplitTokens, DoesNotScoreBos) {
  const ByteTokenizer tokenizer(257, 256);
  const Continuation split = split_tokens(tokenizer, "ab", " c");
  EXPECT_THAT(split.tokens, testing::ElementsAre(256, 'a', 'b', ' ', 'c'));
  EXPECT_EQ(split.num_scored, 2);
}

TEST(SplitTokens, RefusesAContinuationWithoutTokens) {
  EXPECT_THROW(split_tokens(ByteTokenizer(), "ab", ""), Error);
  EXPECT_THROW(split_tokens(ByteTokenizer(), "", "ab"), Error);
}

}  // namespace
}  // namespace nibble::eval
