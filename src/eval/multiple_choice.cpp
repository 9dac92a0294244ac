#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/progress.h"
#include "eval/choice_file.h"
#include "eval/log_likelihood.h"
#include "eval/task.h"

namespace nibble::eval {
namespace {

std::size_t argmax(const std::vector<double>& values) {
  return static_cast<std::size_t>(std::ranges::max_element(values) - values.begin());  // the first wins a tie
}

/// Characters of UTF-8 text: lm-eval normalises by Python's len().
double num_characters(std::string_view text) {
  return static_cast<double>(std::ranges::count_if(text, [](char c) { return (c & '\xc0') != '\x80'; }));
}

/// A question's choices as tokens, and whose log-likelihood is right.
struct Question {
  const ChoiceRow* row = nullptr;
  std::vector<Continuation> continuations;
};

/// Multiple choice by log-likelihood: lm-eval's `acc`, and `acc_norm` (log-likelihood per character of the choice)
/// where the choices are texts of different length.
class MultipleChoice : public Task {
 public:
  explicit MultipleChoice(ChoiceFile file) : file_(std::move(file)) {}

  std::vector<MetricSpec> metrics() const override {
    const std::string name = file_.path.stem().string();
    std::vector<MetricSpec> specs{{name, name, MetricKind::Accuracy}};
    if (is_normalized()) specs.push_back({name + "_norm", name + ", length-normalised", MetricKind::Accuracy});
    return specs;
  }

  std::vector<TaskResult> run(TaskContext& context) const override {
    const std::vector<Question> questions = tokenize(context);
    std::vector<TaskResult> results;
    for (Model& model : context.models()) results.push_back(answer(model, questions));
    return results;
  }

 private:
  bool is_normalized() const { return file_.style == PromptStyle::Answer; }

  /// The first rows of MMLU are all of one subject, so a limit takes rows spread evenly over the file.
  std::vector<Question> tokenize(TaskContext& context) const {
    const std::size_t total = file_.rows.size();
    const auto limit = static_cast<std::size_t>(context.options().limit);
    const std::size_t count = limit == 0 ? total : std::min(limit, total);
    std::vector<Question> questions;
    for (std::size_t i = 0; i < count; ++i) {
      const ChoiceRow& row = file_.rows[i * total / count];
      Question question{&row, {}};
      try {
        for (const ChoicePrompt& prompt : make_prompts(row, file_.style)) {
          question.continuations.push_back(split_tokens(context.tokenizer(), prompt.context, prompt.continuation));
        }
      } catch (const Error& error) {
        throw error.in(fmt::format("{}:{}", file_.path.string(), row.line));
      }
      questions.push_back(std::move(question));
    }
    return questions;
  }

  TaskResult answer(Model& model, const std::vector<Question>& questions) const {
    TaskResult result;
    for (const MetricSpec& spec : metrics()) result.metrics.push_back({spec, {}});
    result.rows = Json::array();
    Progress progress(fmt::format("{}: {}", metrics().front().name, model.name),
                      static_cast<std::int64_t>(questions.size()), "questions");
    progress.update(0);
    for (const Question& question : questions) {
      try {
        add_answer(log_likelihoods(model, question.continuations), *question.row, result);
      } catch (const Error& error) {
        throw error.in(fmt::format("{}:{}", file_.path.string(), question.row->line));
      }
      progress.update(static_cast<std::int64_t>(result.rows.size()));
    }
    return result;
  }

  void add_answer(const std::vector<double>& log_likelihoods, const ChoiceRow& row, TaskResult& result) const {
    const auto answer = static_cast<std::size_t>(row.answer);
    const std::size_t chosen = argmax(log_likelihoods);
    Json item{{"line", row.line}, {"answer", answer}, {"chosen", chosen}};
    result.metrics[0].samples.push_back(chosen == answer ? 1 : 0);
    if (is_normalized()) {
      std::vector<double> per_character = log_likelihoods;
      for (std::size_t c = 0; c < row.choices.size(); ++c) per_character[c] /= num_characters(row.choices[c]);
      const std::size_t chosen_norm = argmax(per_character);
      item["chosen_norm"] = chosen_norm;
      result.metrics[1].samples.push_back(chosen_norm == answer ? 1 : 0);
    }
    item["log_likelihoods"] = log_likelihoods;
    result.rows.push_back(std::move(item));
  }

  ChoiceFile file_;
};

}  // namespace

std::unique_ptr<Task> make_multiple_choice(std::string_view argument) {
  return std::make_unique<MultipleChoice>(read_choice_file(argument));
}

}  // namespace nibble::eval
