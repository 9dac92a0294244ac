#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/thread_pool.h"
#include "eval/statistics.h"
#include "eval/task.h"
#include "eval/windows.h"

namespace nibble::eval {
namespace {

constexpr std::array kTaskKinds{
    TaskKind{"ppl", "", "perplexity of --text", make_perplexity},
    TaskKind{"kl", "", "next-token KL to the baseline and top-1 agreement on --text", make_kl},
    TaskKind{"continuation", "", "four-way choice of the true continuation of places in --text", make_continuation},
    TaskKind{"choice", "FILE.jsonl", "multiple choice by log-likelihood", make_multiple_choice},
};

constexpr std::int64_t kUsualWindowLen = 2048;  // that of published WikiText-2 numbers

std::string known_tasks() {
  std::string names;
  for (const TaskKind& kind : kTaskKinds) {
    names +=
        fmt::format("{}{}{}{}", names.empty() ? "" : ", ", kind.name, kind.argument.empty() ? "" : ":", kind.argument);
  }
  return names;
}

/// Tokens a window: asked for, or the usual length cut to what every model can read.
std::int64_t choose_window_len(const std::vector<Model>& models, std::int64_t wanted) {
  std::int64_t longest = models.front().engine->max_model_len();
  for (const Model& model : models) longest = std::min(longest, model.engine->max_model_len());
  if (wanted > longest) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("--window-len {}: the models read at most {} tokens; choose at most that", wanted, longest));
  }
  if (wanted > 0) return wanted;
  if (longest < kUsualWindowLen) {
    log::info("windows of {} tokens instead of {}: the models read no more", longest, kUsualWindowLen);
  }
  return std::min(longest, kUsualWindowLen);
}

}  // namespace

double Metric::value() const {
  return spec.kind == MetricKind::Perplexity ? std::exp(mean(samples)) : mean(samples);
}

double Metric::standard_error() const {
  const double error = eval::standard_error(samples);
  return spec.kind == MetricKind::Perplexity ? value() * error : error;
}

std::string read_text(const EvalOptions& options) {
  if (options.text_files.empty()) {
    throw Error(ErrorCode::InvalidArgument, "ppl, kl and continuation measure on a text: add --text FILE");
  }
  std::string text;
  for (const auto& file : options.text_files) text += read_corpus_file(file);
  if (text.empty()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: empty; --text takes a file with text", options.text_files.front().string()));
  }
  return text;
}

TaskContext::TaskContext(std::vector<Model>& models, const EvalOptions& options, Compare compare)
    : models_(models), options_(options), compare_(compare) {}

const std::vector<std::int32_t>& TaskContext::text_tokens() {
  if (!options_.text_tokens.empty()) return options_.text_tokens;
  if (!text_tokens_) text_tokens_ = tokenizer().encode(read_text(options_));
  return *text_tokens_;
}

const std::vector<WindowScores>& TaskContext::window_scores() {
  if (window_scores_) return *window_scores_;
  const std::vector<std::int32_t>& tokens = text_tokens();
  WindowPlan plan;
  plan.tokens = tokens;
  plan.window_len = choose_window_len(models_, options_.window_len);
  plan.compares = compare_ == Compare::WithFirstModel;
  const std::int64_t available = static_cast<std::int64_t>(tokens.size()) / plan.window_len;
  if (available == 0) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: the text has {} tokens, less than one window of {}; give a longer text or a smaller "
                            "--window-len",
                            options_.text_files.empty() ? "tokens" : options_.text_files.front().string(),
                            tokens.size(), plan.window_len));
  }
  if (options_.num_windows > available) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--windows {}: the text has {} windows of {} tokens",
                                                        options_.num_windows, available, plan.window_len));
  }
  plan.num_windows = options_.num_windows > 0 ? options_.num_windows : available;
  if (!pool_) pool_ = std::make_unique<ThreadPool>(options_.num_threads);
  window_scores_ = score_windows(models_, plan, *pool_);
  return *window_scores_;
}

std::span<const TaskKind> task_kinds() {
  return kTaskKinds;
}

std::unique_ptr<Task> make_task(std::string_view text) {
  const auto colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::string_view argument = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const auto kind = std::ranges::find(kTaskKinds, name, &TaskKind::name);
  if (kind == kTaskKinds.end()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--tasks: \"{}\" is not a task; there are {}", text, known_tasks()));
  }
  if (argument.empty() != kind->argument.empty()) {
    throw Error(ErrorCode::InvalidArgument,
                kind->argument.empty() ? fmt::format("--tasks: {} takes no argument; found \"{}\"", name, text)
                                       : fmt::format("--tasks: {0} needs a file: {0}:{1}", name, kind->argument));
  }
  return kind->make(argument);
}

}  // namespace nibble::eval
