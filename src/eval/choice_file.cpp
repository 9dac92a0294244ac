#include "eval/choice_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace nibble::eval {
namespace {

constexpr std::string_view kSpace = " \t\n\r\f\v";
constexpr std::size_t kMaxLetters = 26;

std::string_view strip(std::string_view text) {
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

ChoiceRow parse_row(const Json& object, std::int64_t line) {
  if (!object.is_object()) {
    throw Error(ErrorCode::InvalidArgument, "expected an object with question, choices and answer");
  }
  ChoiceRow row;
  row.line = line;
  row.subject = get_or<std::string>(object, "subject", "");
  row.question = get<std::string>(object, "question");
  row.choices = get<std::vector<std::string>>(object, "choices");
  row.answer = get<std::int64_t>(object, "answer");
  if (row.choices.size() < 2) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("choices: {} of them; at least two are needed", row.choices.size()));
  }
  for (const std::string& choice : row.choices) {
    if (strip(choice).empty()) throw Error(ErrorCode::InvalidArgument, "choices: one of them is empty");
  }
  if (row.answer < 0 || row.answer >= static_cast<std::int64_t>(row.choices.size())) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("answer: {} is no index into {} choices (they count from 0)",
                                                        row.answer, row.choices.size()));
  }
  return row;
}

/// The whole file decides, since a question of ARC may hold blanks too.
PromptStyle choose_style(const std::vector<ChoiceRow>& rows) {
  if (!rows.front().subject.empty()) return PromptStyle::Letter;
  const bool all_blanks =
      std::ranges::all_of(rows, [](const ChoiceRow& row) { return std::ranges::count(row.question, '_') == 1; });
  return all_blanks ? PromptStyle::FillBlank : PromptStyle::Answer;
}

void check_style(const ChoiceRow& row, PromptStyle style) {
  if (row.subject.empty() == (style == PromptStyle::Letter)) {
    throw Error(ErrorCode::InvalidArgument, "subject: all rows of a file must have one or none");
  }
  if (style == PromptStyle::Letter && row.choices.size() > kMaxLetters) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("choices: {} of them; the letters A to Z name at most {}",
                                                        row.choices.size(), kMaxLetters));
  }
  if (style == PromptStyle::FillBlank && strip(row.question.substr(row.question.find('_') + 1)).empty()) {
    throw Error(ErrorCode::InvalidArgument, "question: nothing follows the blank, so there is nothing to score");
  }
  if (style == PromptStyle::Answer && strip(row.question).empty()) {
    throw Error(ErrorCode::InvalidArgument, "question: empty");
  }
}

/// Calls parse(line text, line number); errors get "FILE:LINE" in front.
template <class Parse>
void for_each_line(const std::filesystem::path& path, std::string_view text, Parse parse) {
  std::int64_t number = 0;
  while (!text.empty()) {
    const auto end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++number;
    if (strip(line).empty()) continue;
    try {
      parse(line, number);
    } catch (const Error& error) {
      throw error.in(fmt::format("{}:{}", path.string(), number));
    }
  }
}

std::string letter_context(const ChoiceRow& row) {
  std::string subject = row.subject;
  std::ranges::replace(subject, '_', ' ');
  std::string context = fmt::format("The following are multiple choice questions (with answers) about {}.\n\n{}\n",
                                    subject, strip(row.question));
  for (std::size_t c = 0; c < row.choices.size(); ++c) {
    context += fmt::format("{}. {}\n", static_cast<char>('A' + c), row.choices[c]);
  }
  return context + "Answer:";
}

}  // namespace

ChoiceFile read_choice_file(const std::filesystem::path& path) {
  ChoiceFile file;
  file.path = path;
  for_each_line(path, read_text_file(path), [&](std::string_view line, std::int64_t number) {
    file.rows.push_back(parse_row(parse_json(line, "row"), number));
  });
  if (file.rows.empty()) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("{}: no rows; expected {{\"question\", \"choices\", \"answer\"}} on each line", path.string()));
  }
  file.style = choose_style(file.rows);
  for (const ChoiceRow& row : file.rows) {
    try {
      check_style(row, file.style);
    } catch (const Error& error) {
      throw error.in(fmt::format("{}:{}", path.string(), row.line));
    }
  }
  return file;
}

std::vector<ChoicePrompt> make_prompts(const ChoiceRow& row, PromptStyle style) {
  std::vector<ChoicePrompt> prompts;
  for (std::size_t c = 0; c < row.choices.size(); ++c) {
    switch (style) {
      case PromptStyle::Answer:
        prompts.push_back({fmt::format("Question: {}\nAnswer:", row.question), " " + row.choices[c]});
        break;
      case PromptStyle::Letter:
        prompts.push_back({letter_context(row), fmt::format(" {}", static_cast<char>('A' + c))});
        break;
      case PromptStyle::FillBlank: {
        const auto blank = row.question.find('_');
        const std::string_view rest = strip(std::string_view(row.question).substr(blank + 1));
        prompts.push_back({row.question.substr(0, blank) + row.choices[c], fmt::format(" {}", rest)});
        break;
      }
    }
  }
  return prompts;
}

}  // namespace nibble::eval
