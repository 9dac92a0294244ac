#include "eval/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "eval/fake_engine.h"
#include "eval/report.h"
#include "eval/text_file.h"

namespace nibble::eval {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class Evaluate : public testing::Test {
 protected:
  Evaluate()
      : text_("text.txt", std::string("It was the best of times, it was the worst of times, ") +
                              "it was the age of wisdom, it was the age of foolishness, it was the epoch of belief"),
        choices_("quiz.jsonl",
                 "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n"
                 "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\n") {
    options_.text_files = {text_.path()};
    options_.window_len = 32;
    options_.num_threads = 1;
  }

  Report run(std::vector<FakeEngine*> engines, const std::string& max_degradation = "",
             std::optional<double> max_kl = std::nullopt) {
    const Baseline baseline = engines.size() > 1 ? Baseline::FirstModel : Baseline::None;
    Plan plan = make_plan(options_, parse_thresholds(max_degradation, max_kl), baseline);
    plan.num_decode_tokens = 5;
    std::vector<Model> models;
    for (FakeEngine* engine : engines) models.push_back({"model " + std::to_string(models.size()), engine});
    return evaluate(models, plan);
  }

  TextFile text_;
  TextFile choices_;
  EvalOptions options_;
  FakeEngine uniform_{uniform_logits()};
  FakeEngine random_{random_logits(3)};
  FakeEngine other_{random_logits(4)};
};

TEST_F(Evaluate, PerplexityOfUniformLogitsIsTheVocabulary) {
  options_.tasks = {"ppl"};
  const Report report = run({&uniform_});
  const Metric& ppl = report.models[0].metrics[0];
  EXPECT_NEAR(ppl.value(), 256, 1e-9);
  EXPECT_NEAR(ppl.standard_error(), 0, 1e-9);
  EXPECT_EQ(ppl.samples.size(), 4u * 31u);
  EXPECT_EQ(report.outcome(), Outcome::NotJudged);
}

TEST_F(Evaluate, BosStandsOnceInFrontOfTheWholeText) {
  FakeEngine engine(uniform_logits(), 4, ByteTokenizer(257, 256));
  options_.tasks = {"ppl"};
  run({&engine});
  EXPECT_EQ(engine.scored[0][0], 256);
  EXPECT_EQ(engine.scored[1][0], static_cast<std::int32_t>(read_text_file(text_.path())[31]));
}

TEST_F(Evaluate, TakesATextThatIsTokensAlready) {
  options_.tasks = {"ppl"};
  options_.text_files = {};
  options_.window_len = 4;
  options_.num_windows = 2;
  for (std::int32_t token = 0; token < 9; ++token) options_.text_tokens.push_back(token);
  run({&uniform_});
  EXPECT_THAT(uniform_.scored,
              testing::ElementsAre(testing::ElementsAre(0, 1, 2, 3), testing::ElementsAre(4, 5, 6, 7)));
}

TEST_F(Evaluate, ReadsLineEndsAsPythonDoes) {
  const TextFile file("ends.txt", "a\r\nb\rc\n\r\r\n");
  options_.text_files = {file.path()};
  options_.tasks = {"ppl"};
  options_.window_len = 8;
  run({&uniform_});
  EXPECT_EQ(ByteTokenizer().decode(uniform_.scored[0], true), "a\nb\nc\n\n\n");
}

TEST_F(Evaluate, PerplexityAndKlShareOnePassOfEachModel) {
  options_.tasks = {"ppl", "kl"};
  options_.num_windows = 2;
  run({&random_, &other_});
  EXPECT_EQ(random_.scored.size(), 2u);
  EXPECT_EQ(other_.scored.size(), 2u);
}

TEST_F(Evaluate, AModelEqualToItsBaselineIsAcceptedAtZero) {
  options_.tasks = {"ppl", "kl", "choice:" + choices_.string()};
  FakeEngine twin(random_logits(3), 9);
  const Report report = run({&random_, &twin}, "0,ppl=0", 0.0);
  EXPECT_EQ(report.outcome(), Outcome::Accepted);
  EXPECT_EQ(report.models[1].verdict.judgments.size(), 4u);  // ppl, kl, quiz, quiz_norm
}

TEST_F(Evaluate, OneRejectedModelRejectsTheRun) {
  options_.tasks = {"ppl", "kl"};
  FakeEngine twin(random_logits(3));
  const Report report = run({&random_, &twin, &other_}, "", 0.1);
  EXPECT_EQ(report.models[1].verdict.outcome, Outcome::Accepted);
  EXPECT_EQ(report.models[2].verdict.outcome, Outcome::Rejected);
  EXPECT_EQ(report.outcome(), Outcome::Rejected);
}

TEST_F(Evaluate, CountsBitsOfTheWholeCheckpoint) {
  options_.tasks = {"ppl"};
  // q, o 8*8, k, v 8*4, three MLP matrices 8*16, three norms of 8, a tied table of 256*8
  const double weights = 2 * 64 + 2 * 32 + 3 * 128 + 3 * 8 + 2048;
  EXPECT_NEAR(run({&uniform_}).models[0].bits_per_weight, 8 * 1000 / weights, 1e-9);
}

TEST_F(Evaluate, RefusesABaselineWithAnotherVocabulary) {
  options_.tasks = {"ppl"};
  FakeEngine larger(uniform_logits(), 4, ByteTokenizer(300));
  EXPECT_THAT(message_of([&] { run({&larger, &uniform_}); }), HasSubstr("different vocabularies (300 and 256 tokens)"));
  ByteTokenizer renamed;
  renamed.rename_tokens("other ");
  FakeEngine same_size(uniform_logits(), 4, renamed);
  EXPECT_THAT(message_of([&] { run({&same_size, &uniform_}); }), HasSubstr("different vocabularies"));
}

TEST_F(Evaluate, RefusesTextsThatAreTooShort) {
  options_.tasks = {"ppl"};
  options_.window_len = 1000;
  EXPECT_THAT(message_of([&] { run({&uniform_}); }),
              testing::AllOf(HasSubstr("text.txt: the text has 136 tokens"), HasSubstr("window of 1000")));
  options_.window_len = 32;
  options_.num_windows = 5;
  EXPECT_THAT(message_of([&] { run({&uniform_}); }), HasSubstr("--windows 5: the text has 4 windows"));
  options_.window_len = 5000;
  EXPECT_THAT(message_of([&] { run({&uniform_}); }), HasSubstr("--window-len 5000: the models read at most 4096"));
  const TextFile empty("empty.txt", "");
  options_.text_files = {empty.path()};
  EXPECT_THAT(message_of([&] { run({&uniform_}); }), HasSubstr("empty.txt: empty"));
  options_.text_files = {"/nowhere/text.txt"};
  EXPECT_THAT(message_of([&] { run({&uniform_}); }), HasSubstr("/nowhere/text.txt"));
  options_.text_files = {};
  EXPECT_THAT(message_of([&] { run({&uniform_}); }), HasSubstr("--text"));
}

TEST_F(Evaluate, TheUsualWindowIsCutToWhatTheModelsRead) {
  options_.tasks = {"ppl"};
  options_.window_len = 0;
  uniform_.max_len = 20;
  run({&uniform_});
  EXPECT_THAT(uniform_.scored, testing::Each(testing::SizeIs(20)));
}

TEST_F(Evaluate, RefusesPlansThatCannotWork) {
  const auto plan = [&](std::vector<std::string> tasks, const std::string& degradation, Baseline baseline) {
    options_.tasks = std::move(tasks);
    return message_of([&] { make_plan(options_, parse_thresholds(degradation, std::nullopt), baseline); });
  };
  EXPECT_THAT(plan({"mmlu"}, "", Baseline::None), HasSubstr("there are ppl, kl, continuation, choice:FILE.jsonl"));
  EXPECT_THAT(plan({"choice"}, "", Baseline::None), HasSubstr("choice:FILE.jsonl"));
  EXPECT_THAT(plan({"ppl:x"}, "", Baseline::None), HasSubstr("takes no argument"));
  EXPECT_THAT(plan({"kl"}, "", Baseline::None), HasSubstr("add --baseline"));
  options_.text_files = {"/nowhere/text.txt"};
  EXPECT_THAT(plan({"ppl"}, "", Baseline::None), HasSubstr("/nowhere/text.txt"));
  EXPECT_EQ(plan({"choice:" + choices_.string()}, "", Baseline::None), "no error");
  options_.text_files = {text_.path()};
  EXPECT_THAT(plan({"continuation"}, "1", Baseline::None), HasSubstr("add --baseline"));
  EXPECT_THAT(plan({"ppl", "ppl"}, "", Baseline::None), HasSubstr("two of them report \"ppl\""));
  EXPECT_THAT(plan({"ppl"}, "1", Baseline::FirstModel), HasSubstr("ppl=1"));
  EXPECT_THAT(plan({}, "", Baseline::None), HasSubstr("no task"));
}

TEST_F(Evaluate, TheTableShowsBothModelsAndTheVerdict) {
  options_.tasks = {"ppl", "kl"};
  const std::string table = render_table(run({&random_, &other_}, "ppl=1", 100.0));
  EXPECT_THAT(table, HasSubstr("model 0"));
  EXPECT_THAT(table, HasSubstr("model 1: rejected"));
  EXPECT_THAT(table, HasSubstr("against baseline"));
  EXPECT_THAT(table, HasSubstr("at most 1 % allowed: failed"));
  EXPECT_THAT(table, HasSubstr("at most 100 nats allowed: passed"));
  EXPECT_THAT(render_table(run({&random_, &other_})), HasSubstr("model 1: not judged"));
}

TEST_F(Evaluate, TheTableOfOneModelHasNoVerdict) {
  options_.tasks = {"ppl"};
  const std::string table = render_table(run({&uniform_}));
  EXPECT_THAT(table, HasSubstr("256.000"));
  EXPECT_THAT(table, Not(HasSubstr("judged")));
  EXPECT_THAT(table, Not(HasSubstr("against baseline")));
}

TEST_F(Evaluate, JsonHoldsEverything) {
  options_.tasks = {"ppl", "kl", "choice:" + choices_.string()};
  const Json json = to_json(run({&random_, &other_}, "ppl=1", 0.1), Json{{"seed", 0}});
  EXPECT_EQ(json["parameters"]["seed"], 0);
  EXPECT_EQ(json["outcome"], "rejected");
  EXPECT_TRUE(json["models"][0]["is_baseline"]);
  EXPECT_TRUE(json["models"][1]["metrics"]["ppl"].contains("degradation_percent"));
  EXPECT_GT(json["models"][1]["metrics"]["kl"]["value"], 0.1);
  EXPECT_EQ(json["models"][1]["verdict"]["judgments"].size(), 2u);
  EXPECT_EQ(json["items"]["quiz"][1].size(), 2u);
  EXPECT_NE(json.dump().find("\"kl\":{\"value\":null"), std::string::npos);  // of the baseline
}

}  // namespace
}  // namespace nibble::eval
