#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/thread_pool.h"
#include "engine/engine.h"
#include "eval/windows.h"

/// What can be measured of a model. A task turns models into metrics; the rows of the table in tasks.cpp are all there
/// is: a new task is its file, its row, its test.
namespace nibble::engine {
class LayerOuterEngine;
}

namespace nibble::eval {

enum class MetricKind : std::uint8_t {
  Accuracy,    // mean of 0 / 1 samples, higher is better
  Perplexity,  // exp of the mean of samples (negative log-likelihoods in nats), lower is better
  Divergence,  // mean of samples (KL to the baseline in nats), lower is better
  Agreement,   // mean of 0 / 1 samples: the model's most likely token is the baseline's
};

/// `name` is what thresholds and JSON call it ("arc_easy"), `label` what a person reads.
struct MetricSpec {
  std::string name;
  std::string label;
  MetricKind kind = MetricKind::Accuracy;
};

/// One number of one model with everything it is made of. Without samples it does not apply to this model (KL of the
/// baseline to itself); value and standard error are then NaN.
struct Metric {
  MetricSpec spec;
  std::vector<double> samples;  // one an item, the same items for every model

  double value() const;
  /// Of `value`, from the spread of the samples taken as independent; for perplexity by the delta method.
  double standard_error() const;
};

/// What a task found out about one model. `rows`: one object an item where the task has items (--json), else null.
struct TaskResult {
  std::vector<Metric> metrics;
  Json rows;
};

/// A loaded model in a comparison, and how fast it was scored.
struct Model {
  std::string name;
  engine::Engine* engine = nullptr;                 // owned by the caller, outlives the evaluation
  engine::LayerOuterEngine* layer_outer = nullptr;  // the same, where it holds a block at a time
  std::int64_t scored_tokens = 0;
  double scoring_seconds = 0;
};

/// What to measure and on what; the defaults are those of the command line.
struct EvalOptions {
  std::vector<std::string> tasks;                 // "ppl", "kl", "continuation", "choice:FILE.jsonl"
  std::vector<std::filesystem::path> text_files;  // joined as they are
  std::vector<std::int32_t> text_tokens;          // a text that is tokens already, instead of text_files
  std::int64_t num_windows = 0;                   // first windows of the text; 0: all whole ones
  std::int64_t window_len = 0;                    // tokens; 0: 2048, or the models' context where that is shorter
  std::int64_t limit = 0;                         // items of a choice or continuation task; 0: its default
  std::int64_t continuation_context_len = 24;     // tokens
  std::int64_t continuation_len = 8;              // tokens
  std::uint64_t seed = 0;                         // of the continuation task
  int num_threads = 0;                            // for arithmetic on logits beside the engines' own; 0: every CPU
};

/// The text files, joined. Errors: InvalidArgument without --text or for an empty text; as read_corpus_file.
std::string read_text(const EvalOptions& options);

/// What tasks share while they run: the models, the text as tokens, one pass over its windows. One thread uses it.
class TaskContext {
 public:
  enum class Compare : std::uint8_t { None, WithFirstModel };

  /// `compare` says whether the windows are compared with models[0], the baseline, token by token.
  TaskContext(std::vector<Model>& models, const EvalOptions& options, Compare compare);

  std::vector<Model>& models() { return models_; }
  const EvalOptions& options() const { return options_; }
  const tokenizer::Tokenizer& tokenizer() const { return models_.front().engine->tokenizer(); }

  /// The text files, joined and tokenised once as transformers' `tokenizer(text)` does: BOS stands in front of the
  /// whole text where the tokenizer adds one, never in front of each window; or the options' tokens. Errors:
  /// InvalidArgument without --text or for an empty text; as read_corpus_file.
  const std::vector<std::int32_t>& text_tokens();
  /// One pass of every model over the windows of the text, made when first asked for. Errors: InvalidArgument where the
  /// text is shorter than a window.
  const std::vector<WindowScores>& window_scores();

 private:
  std::vector<Model>& models_;
  const EvalOptions& options_;
  Compare compare_;
  std::unique_ptr<ThreadPool> pool_;
  std::optional<std::vector<std::int32_t>> text_tokens_;
  std::optional<std::vector<WindowScores>> window_scores_;
};

class Task {
 public:
  virtual ~Task() = default;
  /// What it will report for each model, in order.
  virtual std::vector<MetricSpec> metrics() const = 0;
  /// Whether it compares with a baseline, and is an error without one.
  virtual bool needs_baseline() const { return false; }
  /// Whether it measures on --text.
  virtual bool needs_text() const { return false; }
  /// One result a model, in the order of context.models().
  virtual std::vector<TaskResult> run(TaskContext& context) const = 0;
};

/// A row of the table. `make` gets what follows the colon in "choice:FILE.jsonl".
struct TaskKind {
  std::string_view name;
  std::string_view argument;  // "" or what it is: "FILE.jsonl"
  std::string_view summary;
  std::unique_ptr<Task> (*make)(std::string_view argument);
};

std::span<const TaskKind> task_kinds();

/// "ppl" or "choice:FILE.jsonl" → the task; reads and checks its file. Errors: InvalidArgument naming the known tasks;
/// as read_choice_file.
std::unique_ptr<Task> make_task(std::string_view text);

// The tasks, each in the file of its name.
std::unique_ptr<Task> make_perplexity(std::string_view argument);
std::unique_ptr<Task> make_kl(std::string_view argument);
std::unique_ptr<Task> make_continuation(std::string_view argument);
std::unique_ptr<Task> make_multiple_choice(std::string_view argument);

}  // namespace nibble::eval
