#include "eval/choice_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "eval/text_file.h"

namespace nibble::eval {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string error_of(std::string_view text) {
  const TextFile file("rows.jsonl", text);
  try {
    read_choice_file(file.path());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    return error.what();
  }
  return "no error";
}

ChoiceFile read(std::string_view text) {
  return read_choice_file(TextFile("rows.jsonl", text).path());
}

constexpr const char* kGood = R"({"question": "q", "choices": ["a", "b"], "answer": 1})";

TEST(ChoiceFile, ArcAndPiqaAskForTheAnswersText) {
  const auto file = read(R"({"question": "Why?", "choices": ["Because.", "No ____ reason"], "answer": 1})");
  EXPECT_EQ(file.style, PromptStyle::Answer);
  const auto prompts = make_prompts(file.rows[0], file.style);
  EXPECT_EQ(prompts[0].context, "Question: Why?\nAnswer:");
  EXPECT_EQ(prompts[0].continuation, " Because.");
  EXPECT_EQ(prompts[1].continuation, " No ____ reason");
}

TEST(ChoiceFile, MmluNamesTheSubjectAndAsksForALetter) {
  const auto file =
      read(R"({"subject": "abstract_algebra", "question": " Find x. ", "choices": ["0", "4", "2", "6"], "answer": 1})");
  EXPECT_EQ(file.style, PromptStyle::Letter);
  const auto prompts = make_prompts(file.rows[0], file.style);
  EXPECT_EQ(prompts[2].context,
            "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
            "Find x.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:");
  EXPECT_EQ(prompts[2].continuation, " C");
  EXPECT_EQ(prompts[3].context, prompts[0].context);
}

TEST(ChoiceFile, WinoGrandeScoresTheTextAfterTheBlank) {
  const auto file = read(R"({"question": "Ann beat Bea so _ was sad.", "choices": ["Ann", "Bea"], "answer": 1})");
  EXPECT_EQ(file.style, PromptStyle::FillBlank);
  const auto prompts = make_prompts(file.rows[0], file.style);
  EXPECT_EQ(prompts[1].context, "Ann beat Bea so Bea");
  EXPECT_EQ(prompts[1].continuation, " was sad.");
}

TEST(ChoiceFile, OneQuestionWithABlankDoesNotMakeItWinoGrande) {
  const auto file = read(std::string(kGood) + "\n" + R"({"question": "a _", "choices": ["a", "b"], "answer": 0})");
  EXPECT_EQ(file.style, PromptStyle::Answer);
}

TEST(ChoiceFile, CountsLinesAndSkipsEmptyOnes) {
  const auto file = read(std::string("\n") + kGood + "\r\n\n" + kGood);
  ASSERT_EQ(file.rows.size(), 2u);
  EXPECT_EQ(file.rows[0].line, 2);
  EXPECT_EQ(file.rows[1].line, 4);
}

TEST(ChoiceFile, NamesTheLineAndFieldOfAMalformedRow) {
  const auto second = [](const char* row) { return error_of(std::string(kGood) + "\n" + row + "\n"); };
  EXPECT_THAT(second("{\"question\": "), AllOf(HasSubstr("rows.jsonl:2: "), HasSubstr("JSON")));
  EXPECT_THAT(second("[]"), HasSubstr("rows.jsonl:2: expected an object"));
  EXPECT_THAT(second(R"({"choices": ["a", "b"], "answer": 1})"), HasSubstr("rows.jsonl:2: question: missing"));
  EXPECT_THAT(second(R"({"question": 3, "choices": ["a", "b"], "answer": 1})"), HasSubstr("question: expected"));
  EXPECT_THAT(second(R"({"question": "q", "answer": 1})"), HasSubstr("rows.jsonl:2: choices: missing"));
  EXPECT_THAT(second(R"({"question": "q", "choices": [1, 2], "answer": 1})"), HasSubstr("choices: expected"));
  EXPECT_THAT(second(R"({"question": "q", "choices": [], "answer": 0})"), HasSubstr("choices: 0 of them"));
  EXPECT_THAT(second(R"({"question": "q", "choices": ["a", " "], "answer": 0})"), HasSubstr("choices: one of them"));
  EXPECT_THAT(second(R"({"question": "q", "choices": ["a", "b"]})"), HasSubstr("rows.jsonl:2: answer: missing"));
  EXPECT_THAT(second(R"({"question": "q", "choices": ["a", "b"], "answer": "B"})"), HasSubstr("answer: expected"));
  EXPECT_THAT(second(R"({"question": "q", "choices": ["a", "b"], "answer": 2})"),
              HasSubstr("rows.jsonl:2: answer: 2 is no index into 2 choices"));
  EXPECT_THAT(second(R"({"question": "q", "choices": ["a", "b"], "answer": -1})"), HasSubstr("answer: -1"));
  EXPECT_THAT(second(R"({"subject": "s", "question": "q", "choices": ["a", "b"], "answer": 1})"),
              HasSubstr("rows.jsonl:2: subject"));
  EXPECT_THAT(error_of(R"({"question": "ends in a _", "choices": ["a", "b"], "answer": 1})"),
              HasSubstr("rows.jsonl:1: question: nothing follows the blank"));
}

TEST(ChoiceFile, WithoutRowsIsAnError) {
  EXPECT_THAT(error_of(""), HasSubstr("rows.jsonl: no rows"));
  EXPECT_THAT(error_of("\n \n"), HasSubstr("no rows"));
}

TEST(ChoiceFile, ThatDoesNotExistIsNotFound) {
  try {
    read_choice_file("/nowhere/rows.jsonl");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFound);
    EXPECT_THAT(error.what(), HasSubstr("/nowhere/rows.jsonl"));
  }
}

}  // namespace
}  // namespace nibble::eval
