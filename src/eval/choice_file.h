#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble::eval {

/// How a question becomes prompts; lm-eval's for the sets named.
enum class PromptStyle : std::uint8_t {
  Answer,     // ARC, PIQA: "Question: …\nAnswer:" then " choice"
  Letter,     // MMLU: a line that names the subject, the question, "A. …" lines, "Answer:" then " A"
  FillBlank,  // WinoGrande: the text up to the blank with each option put in, then the text after it
};

struct ChoiceRow {
  std::string subject;  // "" but for MMLU
  std::string question;
  std::vector<std::string> choices;  // at least two
  std::int64_t answer = 0;           // index of the right one
  std::int64_t line = 0;             // in the file, from 1
};

struct ChoiceFile {
  std::filesystem::path path;
  PromptStyle style = PromptStyle::Answer;
  std::vector<ChoiceRow> rows;
};

/// Text to judge given the text before it.
struct ChoicePrompt {
  std::string context;
  std::string continuation;
};

/// Reads {"question": str, "choices": [str, …], "answer": index}, one object a line; with "subject" in every row it is
/// MMLU, with exactly one "_" in every question WinoGrande. Other fields are ignored, empty lines skipped.
/// Errors: InvalidArgument "FILE:LINE: field: …"; NotFound.
ChoiceFile read_choice_file(const std::filesystem::path& path);

/// One prompt a choice, in order.
std::vector<ChoicePrompt> make_prompts(const ChoiceRow& row, PromptStyle style);

}  // namespace nibble::eval
