#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/error.h"
#include "eval/fake_engine.h"
#include "eval/task.h"
#include "eval/text_file.h"

namespace nibble::eval {
namespace {

using testing::HasSubstr;

/// Counts in decimal: every place of it is different.
std::string counting_text(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += std::to_string(i) + " ";
  return text;
}

/// Knows the text by heart: after 12 bytes of it, the next byte is certain.
FakeEngine::Logits recite(std::string text) {
  return [text = std::move(text)](std::span<const std::int32_t> context, std::span<float> logits) {
    std::ranges::fill(logits, 0.f);
    const auto length = std::min<std::size_t>(context.size(), 12);
    std::string end;
    for (const std::int32_t token : context.last(length)) end += static_cast<char>(token);
    const auto found = text.find(end);
    if (found != std::string::npos && found + length < text.size()) {
      logits[static_cast<unsigned char>(text[found + length])] = 20;
    }
  };
}

TaskResult run(FakeEngine& engine, const EvalOptions& options) {
  std::vector<Model> models{{"m", &engine}};
  TaskContext context(models, options, TaskContext::Compare::None);
  return std::move(make_task("continuation")->run(context)[0]);
}

class Continuation4 : public testing::Test {
 protected:
  Continuation4() : text_(counting_text(2000)), file_("text.txt", text_) {
    options_.text_files = {file_.path()};
    options_.limit = 60;
  }
  std::string text_;
  TextFile file_;
  EvalOptions options_;
};

TEST_F(Continuation4, AModelThatKnowsTheTextIsAlwaysRight) {
  FakeEngine engine(recite(text_));
  const TaskResult result = run(engine, options_);
  EXPECT_EQ(result.metrics[0].samples.size(), 60u);
  EXPECT_EQ(result.metrics[0].value(), 1);
  EXPECT_EQ(result.metrics[0].standard_error(), 0);
}

TEST_F(Continuation4, TheAnswerStandsAtEveryIndex) {
  FakeEngine engine(uniform_logits());  // a tie: always chooses the first
  const TaskResult result = run(engine, options_);
  std::set<int> answers;
  for (const Json& row : result.rows) answers.insert(row["answer"].get<int>());
  EXPECT_THAT(answers, testing::ElementsAre(0, 1, 2, 3));
  EXPECT_NEAR(result.metrics[0].value(), 0.25, 0.2);
}

TEST_F(Continuation4, TheSameSeedAsksTheSameQuestions) {
  FakeEngine first(uniform_logits());
  FakeEngine second(uniform_logits());
  FakeEngine other(uniform_logits());
  run(first, options_);
  run(second, options_);
  options_.seed = 1;
  run(other, options_);
  EXPECT_EQ(first.scored, second.scored);
  EXPECT_NE(first.scored, other.scored);
}

TEST_F(Continuation4, ScoresContextAndContinuationOfTheLengthsAskedFor) {
  options_.continuation_context_len = 7;
  options_.continuation_len = 5;
  FakeEngine engine(uniform_logits());
  run(engine, options_);
  EXPECT_THAT(engine.scored, testing::Each(testing::SizeIs(7 + 5 - 1)));
}

TEST_F(Continuation4, ATextWithoutFourPlacesIsAnError) {
  const TextFile short_file("short.txt", "too short to choose from");
  options_.text_files = {short_file.path()};
  FakeEngine engine(uniform_logits());
  try {
    run(engine, options_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("needs four places"));
  }
}

TEST_F(Continuation4, ATextThatRepeatsItselfIsAnError) {
  const TextFile flat("flat.txt", std::string(5000, 'a'));
  options_.text_files = {flat.path()};
  FakeEngine engine(uniform_logits());
  EXPECT_THROW(run(engine, options_), Error);
}

}  // namespace
}  // namespace nibble::eval
