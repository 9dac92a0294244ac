#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "engine/engine.h"
#include "engine/layer_outer_engine.h"
#include "eval/evaluate.h"
#include "eval/report.h"
#include "eval/task.h"
#include "eval/verdict.h"
#include "hub/hub.h"

namespace nibble::apps {
namespace {

constexpr int kDone = 0;
constexpr int kRejected = 3;

struct EvalFlags {
  std::vector<std::string> models;
  std::string baseline;
  std::string max_degradation;
  std::optional<double> max_kl;
  std::string json_file;
  std::int64_t num_decode_tokens = 0;
  bool layer_outer = false;
  eval::EvalOptions eval;
  engine::EngineOptions engine;
};

std::vector<std::string> default_tasks(const EvalFlags& flags) {
  if (flags.layer_outer && flags.baseline.empty()) return {"ppl"};
  if (flags.layer_outer) return {"ppl", "kl"};
  if (flags.baseline.empty()) return {"ppl", "continuation"};
  return {"ppl", "kl", "continuation"};
}

/// The last part of the path, or the whole where two models would be called the same.
std::vector<std::string> short_names(const std::vector<std::string>& models) {
  std::vector<std::string> names;
  for (const std::string& model : models) {
    const auto path = std::filesystem::path(model).lexically_normal();
    names.push_back(path.has_filename() ? path.filename().string() : path.parent_path().filename().string());
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].empty() || std::ranges::count(names, names[i]) > 1) return models;
  }
  return names;
}

/// How the report was made, for --json.
Json parameters(const EvalFlags& flags) {
  Json text_files = Json::array();
  for (const auto& file : flags.eval.text_files) text_files.push_back(file.string());
  return {{"models", flags.models},
          {"baseline", flags.baseline},
          {"tasks", flags.eval.tasks},
          {"text", std::move(text_files)},
          {"max_degradation", flags.max_degradation},
          {"max_kl", flags.max_kl ? Json(*flags.max_kl) : Json()},
          {"limit", flags.eval.limit},
          {"windows", flags.eval.num_windows},
          {"window_len", flags.eval.window_len},
          {"context_len", flags.eval.continuation_context_len},
          {"continuation_len", flags.eval.continuation_len},
          {"seed", flags.eval.seed},
          {"decode_tokens", flags.num_decode_tokens},
          {"device", flags.engine.device},
          {"exact", flags.engine.exact},
          {"layer_outer", flags.layer_outer},
          {"dtype", flags.engine.dtype},
          {"quantization", flags.engine.quantization},
          {"kv_cache_dtype", flags.engine.kv_cache_dtype},
          {"activations", flags.engine.activations},
          {"threads", flags.engine.num_threads},
          {"load_format", flags.engine.load_format},
          {"max_model_len", flags.engine.max_model_len}};
}

/// The baseline runs as it is; what the other flags change is measured against it.
engine::EngineOptions baseline_options(engine::EngineOptions options) {
  const engine::EngineOptions defaults;
  options.quantization = defaults.quantization;
  options.kv_cache_dtype = defaults.kv_cache_dtype;
  options.activations = defaults.activations;
  return options;
}

/// A block at a time serves texts that are known beforehand.
void check_layer_outer(const EvalFlags& flags) {
  if (!flags.layer_outer) return;
  const bool is_text =
      std::ranges::all_of(flags.eval.tasks, [](const auto& task) { return task == "ppl" || task == "kl"; });
  if (is_text && flags.num_decode_tokens == 0) return;
  throw Error(ErrorCode::InvalidArgument,
              "--layer-outer holds one block of the model at a time, which serves --tasks ppl and kl, not choices, "
              "continuations or --decode-tokens");
}

int run_eval(EvalFlags flags) {
  if (flags.eval.tasks.empty()) flags.eval.tasks = default_tasks(flags);
  check_layer_outer(flags);
  flags.eval.num_threads = flags.engine.num_threads;
  const bool has_baseline = !flags.baseline.empty();
  std::vector<std::string> sources = flags.models;
  if (has_baseline) sources.insert(sources.begin(), flags.baseline);
  std::vector<std::filesystem::path> paths;  // all of them before any is loaded: a typing error costs no minutes
  for (const std::string& source : sources) paths.push_back(hub::resolve_model(source));
  eval::Plan plan = eval::make_plan(flags.eval, eval::parse_thresholds(flags.max_degradation, flags.max_kl),
                                    has_baseline ? eval::Baseline::FirstModel : eval::Baseline::None);
  plan.num_decode_tokens = flags.num_decode_tokens;

  const std::vector<std::string> names = short_names(sources);
  std::vector<std::unique_ptr<engine::Engine>> engines;
  std::vector<eval::Model> models;
  for (std::size_t m = 0; m < sources.size(); ++m) {
    const bool is_baseline = has_baseline && m == 0;
    engine::EngineOptions options = is_baseline ? baseline_options(flags.engine) : flags.engine;
    options.gpu_memory_utilization /= static_cast<double>(sources.size());  // all are loaded at once
    engine::LayerOuterEngine* layer_outer = nullptr;
    if (flags.layer_outer) {
      auto opened = engine::LayerOuterEngine::open(paths[m], options);
      layer_outer = opened.get();
      engines.push_back(std::move(opened));
    } else {
      engines.push_back(engine::Engine::load(paths[m], options));
    }
    log::info("{}: {}", names[m], engines.back()->description());
    models.push_back({names[m], engines.back().get(), layer_outer});
  }
  const eval::Report report = eval::evaluate(models, plan);
  print(eval::render_table(report));
  if (!flags.json_file.empty()) write_json_file(flags.json_file, eval::to_json(report, parameters(flags)));
  return report.outcome() == eval::Outcome::Rejected ? kRejected : kDone;
}

void add_task_flags(CLI::App& command, EvalFlags& flags) {
  std::string tasks;
  for (const eval::TaskKind& kind : eval::task_kinds()) {
    tasks += fmt::format("{}{}{}: {}", tasks.empty() ? "" : "; ", kind.name,
                         kind.argument.empty() ? "" : fmt::format(":{}", kind.argument), kind.summary);
  }
  command.add_option("--tasks", flags.eval.tasks, fmt::format("separated by commas. {}", tasks))
      ->delimiter(',')
      ->type_name("TASK,…");
  command.add_option("--text", flags.eval.text_files, "text to measure on; several files are joined as they are")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command.add_option("--limit", flags.eval.limit, "questions a choice file, spread over it, or continuation places")
      ->check(at_least(1));
  command.add_option("--windows", flags.eval.num_windows, "first windows of the text; default: all")
      ->check(at_least(1));
  command.add_option("--window-len", flags.eval.window_len, "tokens a window; default: 2048 or the model's context")
      ->check(between(2, 0x1p31));
  command.add_option("--context-len", flags.eval.continuation_context_len, "tokens a continuation task's context")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--continuation-len", flags.eval.continuation_len, "tokens a continuation")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--seed", flags.eval.seed, "of the continuation task")->capture_default_str();
}

}  // namespace

std::function<int()> add_eval(CLI::App& command) {
  auto flags = std::make_shared<EvalFlags>();
  command.add_option("model", flags->models, "one or more: folder, GGUF file or Hub name")
      ->required()
      ->type_name("MODEL");
  command.add_option("--baseline", flags->baseline, "the model before it was quantized")->type_name("MODEL");
  add_task_flags(command, *flags);
  command
      .add_option("--max-degradation", flags->max_degradation,
                  "percent that accuracies may lose (1.0), or metrics by name (ppl=5,arc_easy=1)")
      ->type_name("PERCENT");
  command.add_option("--max-kl", flags->max_kl, "largest mean KL to the baseline, in nats")->type_name("NATS");
  command.add_flag("--layer-outer", flags->layer_outer,
                   "a model larger than memory: one block at a time for the whole text (ppl and kl)");
  command.add_option("--json", flags->json_file, "write everything there too")->type_name("FILE");
  command.add_option("--decode-tokens", flags->num_decode_tokens, "also time decoding of so many tokens")
      ->check(at_least(1));
  add_engine_flags(command, flags->engine);
  command.footer("Exit codes: 0 accepted or not judged, 1 error, 2 usage, 3 rejected by a threshold.");
  return [flags] { return run_eval(*flags); };
}

}  // namespace nibble::apps
