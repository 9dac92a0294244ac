#include "eval/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "engine/engine.h"
#include "eval/speed.h"
#include "eval/task.h"
#include "eval/verdict.h"

namespace nibble::eval {
namespace {

std::vector<MetricSpec> metrics_of(const std::vector<std::unique_ptr<Task>>& tasks) {
  std::vector<MetricSpec> specs;
  for (const auto& task : tasks) {
    for (MetricSpec& spec : task->metrics()) specs.push_back(std::move(spec));
  }
  return specs;
}

void check_names(const std::vector<MetricSpec>& specs) {
  for (std::size_t i = 0; i < specs.size(); ++i) {
    for (std::size_t j = i + 1; j < specs.size(); ++j) {
      if (specs[i].name != specs[j].name) continue;
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--tasks: two of them report \"{}\"; name each task and each file once", specs[i].name));
    }
  }
}

/// Perplexities and KL of different vocabularies do not compare.
void check_same_vocabulary(const std::vector<Model>& models) {
  const engine::Engine& first = *models.front().engine;
  for (const Model& model : models) {
    const std::int64_t num_tokens = first.tokenizer().vocab_size();
    bool is_same = model.engine->config().vocab_size == first.config().vocab_size &&
                   model.engine->tokenizer().vocab_size() == num_tokens;
    for (std::int32_t id = 0; is_same && id < num_tokens; ++id) {
      is_same = model.engine->tokenizer().id_to_token(id) == first.tokenizer().id_to_token(id);
    }
    if (is_same) continue;
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("{} and {} have different vocabularies ({} and {} tokens), so their numbers do not compare; "
                    "a baseline is the same model before it was quantized",
                    models.front().name, model.name, first.config().vocab_size, model.engine->config().vocab_size));
  }
}

/// Weights of a Llama-shaped model, from its shapes.
double num_weights(const models::ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>((2 * config.num_attention_heads + 2 * config.num_key_value_heads) *
                                         config.head_dim);  // q and o, k and v
  const double block = hidden * heads + 3 * hidden * static_cast<double>(config.intermediate_size) + 2 * hidden;
  const double tables = config.tie_word_embeddings ? 1 : 2;
  return static_cast<double>(config.num_hidden_layers) * block + hidden +
         tables * hidden * static_cast<double>(config.vocab_size);
}

ModelReport describe(const Model& model) {
  ModelReport report;
  report.name = model.name;
  report.description = model.engine->description();
  report.checkpoint_bytes = model.engine->checkpoint_bytes();
  report.weight_bytes = model.engine->weight_bytes();
  report.bits_per_weight = 8 * static_cast<double>(report.checkpoint_bytes) / num_weights(model.engine->config());
  report.scored_tokens = model.scored_tokens;
  if (model.scoring_seconds > 0) {
    report.scoring_tokens_per_second = static_cast<double>(model.scored_tokens) / model.scoring_seconds;
  }
  return report;
}

void run_task(const Task& task, const std::string& name, TaskContext& context,
              std::vector<std::vector<Metric>>& metrics, Report& report) {
  std::vector<TaskResult> results = task.run(context);
  std::vector<Json> rows;
  for (std::size_t m = 0; m < results.size(); ++m) {
    for (Metric& metric : results[m].metrics) metrics[m].push_back(std::move(metric));
    if (!results[m].rows.is_null()) rows.push_back(std::move(results[m].rows));
  }
  if (!rows.empty()) report.rows.emplace_back(name, std::move(rows));
}

void compare(Report& report, const Thresholds& thresholds) {
  const ModelReport& baseline = report.models.front();
  for (std::size_t m = 1; m < report.models.size(); ++m) {
    ModelReport& model = report.models[m];
    for (std::size_t i = 0; i < model.metrics.size(); ++i) {
      model.degradations[i] = degradation(baseline.metrics[i], model.metrics[i]);
    }
    model.verdict = judge(baseline.metrics, model.metrics, thresholds);
  }
}

}  // namespace

Outcome Report::outcome() const {
  Outcome outcome = Outcome::NotJudged;
  for (const ModelReport& model : models) outcome = std::max(outcome, model.verdict.outcome);
  return outcome;
}

Plan make_plan(EvalOptions options, Thresholds thresholds, Baseline baseline) {
  Plan plan;
  if (options.tasks.empty()) throw Error(ErrorCode::InvalidArgument, "--tasks: no task is named");
  for (const std::string& text : options.tasks) {
    plan.tasks.push_back(make_task(text));
    if (plan.tasks.back()->needs_baseline() && baseline == Baseline::None) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--tasks: {} compares with a baseline: add --baseline MODEL", text));
    }
  }
  // Read again once models are loaded; here a wrong name costs milliseconds instead.
  const bool needs_text = std::ranges::any_of(plan.tasks, [](const auto& task) { return task->needs_text(); });
  if (needs_text && options.text_tokens.empty()) read_text(options);
  const std::vector<MetricSpec> specs = metrics_of(plan.tasks);
  check_names(specs);
  if (!thresholds.is_empty() && baseline == Baseline::None) {
    throw Error(ErrorCode::InvalidArgument,
                "--max-degradation and --max-kl judge against a baseline: add --baseline MODEL");
  }
  check_thresholds(thresholds, specs);
  plan.options = std::move(options);
  plan.thresholds = std::move(thresholds);
  plan.baseline = baseline;
  return plan;
}

Report evaluate(std::vector<Model>& models, const Plan& plan) {
  check_same_vocabulary(models);
  const bool compares = std::ranges::any_of(plan.tasks, [](const auto& task) { return task->needs_baseline(); });
  TaskContext context(models, plan.options,
                      compares ? TaskContext::Compare::WithFirstModel : TaskContext::Compare::None);
  Report report;
  report.has_baseline = plan.baseline == Baseline::FirstModel;
  std::vector<std::vector<Metric>> metrics(models.size());
  for (const auto& task : plan.tasks) run_task(*task, task->metrics().front().name, context, metrics, report);
  for (std::size_t m = 0; m < models.size(); ++m) {
    report.models.push_back(describe(models[m]));
    report.models.back().metrics = std::move(metrics[m]);
    report.models.back().degradations.resize(report.models.back().metrics.size());
    if (plan.num_decode_tokens > 0) {
      report.models.back().decode_tokens_per_second = measure_decode(*models[m].engine, plan.num_decode_tokens);
    }
  }
  if (report.has_baseline) compare(report, plan.thresholds);
  return report;
}

}  // namespace nibble::eval
