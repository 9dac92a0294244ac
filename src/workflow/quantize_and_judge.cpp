#include "workflow/quantize_and_judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "core/log.h"
#include "engine/layer_outer_engine.h"
#include "eval/evaluate.h"
#include "formats/checkpoint.h"
#include "models/config.h"
#include "quantize/calibration.h"

namespace nibble::workflow {
namespace {

constexpr std::int64_t kFewestTokens = 2048;
constexpr std::int64_t kUsualWindowLen = 2048;  // that of published numbers, as eval has it

/// The text to judge on, as tokens: num_windows windows of window_len, one after the other.
struct JudgedText {
  std::vector<std::int32_t> tokens;
  std::int64_t num_windows = 0;
  std::int64_t window_len = 0;
  std::string name;
};

bool calibrates(const quantize::PipelineOptions& options) {
  return quantize::find_method(options.method).calibration(options.method_options) != quantize::Calibration::None;
}

/// By default an eighth of the calibration tokens, which both models together pass in a quarter to a third of GPTQ's
/// time.
std::int64_t wanted_windows(const quantize::PipelineOptions& options, const JudgeOptions& judge,
                            std::int64_t window_len) {
  if (judge.num_windows > 0) return judge.num_windows;
  std::int64_t num_tokens = kFewestTokens;
  if (calibrates(options)) {
    num_tokens = std::max(num_tokens, options.calibration.num_samples * options.calibration.seq_len / 8);
  }
  return std::max<std::int64_t>(1, num_tokens / window_len);
}

void expect_enough(const JudgeOptions& judge, std::int64_t available, std::int64_t window_len,
                   const std::string& name) {
  if (judge.num_windows <= available) return;
  throw Error(ErrorCode::InvalidArgument, fmt::format("--judge-windows {}: {} has {} windows of {} tokens",
                                                      judge.num_windows, name, available, window_len));
}

std::string file_names(const std::vector<std::filesystem::path>& files) {
  std::string names;
  for (const auto& file : files) names += (names.empty() ? "" : ", ") + file.filename().string();
  return names;
}

/// The first windows of the files, read as `nibble eval --text` reads them.
JudgedText read_text_files(const formats::Checkpoint& checkpoint, const quantize::PipelineOptions& options,
                           const JudgeOptions& judge) {
  const std::int64_t longest = models::parse_model_config(checkpoint.config()).max_position_embeddings;
  if (judge.window_len > longest) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--judge-window-len {}: the model reads at most {} tokens", judge.window_len, longest));
  }
  JudgedText text;
  text.name = file_names(judge.text_files);
  text.window_len = judge.window_len > 0 ? judge.window_len : std::min(kUsualWindowLen, longest);
  eval::EvalOptions files;
  files.text_files = judge.text_files;
  text.tokens = quantize::load_tokenizer(checkpoint)->encode(eval::read_text(files));
  const std::int64_t available = static_cast<std::int64_t>(text.tokens.size()) / text.window_len;
  if (available == 0) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--judge-text {}: {} tokens are less than one window of {}; give a longer text or a "
                            "smaller --judge-window-len",
                            text.name, text.tokens.size(), text.window_len));
  }
  expect_enough(judge, available, text.window_len, text.name);
  text.num_windows = std::min(available, wanted_windows(options, judge, text.window_len));
  return text;
}

/// Windows of the calibration text that no sample was drawn from.
JudgedText hold_out(const formats::Checkpoint& checkpoint, const quantize::PipelineOptions& options,
                    const JudgeOptions& judge) {
  const quantize::CalibrationOptions& calibration = options.calibration;
  if (!calibrates(options) || calibration.sources.front() == "self") {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("--judge: {}, so there is no text of which a part could be held out; give --judge-text FILE",
                    calibrates(options) ? "without --calibration FILE the model writes its own samples"
                                        : options.method + " does not calibrate"));
  }
  if (judge.window_len > 0) {
    throw Error(ErrorCode::InvalidArgument,
                "--judge-window-len: goes with --judge-text; held-out windows are as long as the samples (--seq-len)");
  }
  const std::int64_t wanted = wanted_windows(options, judge, calibration.seq_len);
  quantize::CalibrationSamples samples = quantize::make_held_out(checkpoint, calibration, wanted);
  std::vector<std::filesystem::path> files(calibration.sources.begin(), calibration.sources.end());
  JudgedText text{.tokens = std::move(samples.tokens),
                  .num_windows = samples.num_samples,
                  .window_len = calibration.seq_len,
                  .name = file_names(files) + ", held out"};
  if (text.num_windows == 0) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("--judge: all of {} goes into {} samples, so nothing is held out; give --judge-text FILE or "
                    "fewer --samples",
                    file_names(files), calibration.num_samples));
  }
  expect_enough(judge, text.num_windows, text.window_len, text.name);
  return text;
}

JudgedText choose_text(const quantize::PipelineOptions& options, const JudgeOptions& judge) {
  const auto checkpoint = formats::Checkpoint::open(options.model);
  return judge.text_files.empty() ? hold_out(*checkpoint, options, judge)
                                  : read_text_files(*checkpoint, options, judge);
}

eval::Plan make_plan(const quantize::PipelineOptions& options, const JudgeOptions& judge, const JudgedText& text) {
  eval::EvalOptions eval_options;
  eval_options.tasks = {"ppl", "kl"};
  eval_options.text_tokens = text.tokens;
  eval_options.num_windows = text.num_windows;
  eval_options.window_len = text.window_len;
  eval_options.num_threads = options.num_threads;
  return eval::make_plan(std::move(eval_options), eval::parse_thresholds("", judge.max_kl), eval::Baseline::FirstModel);
}

const eval::Metric& find_metric(const eval::ModelReport& model, std::string_view name) {
  return *std::ranges::find(model.metrics, name,
                            [](const eval::Metric& metric) { return std::string_view(metric.spec.name); });
}

/// The float model and the written one, side by side.
eval::Report walk(const quantize::PipelineOptions& options, const eval::Plan& plan) {
  engine::EngineOptions engine_options;
  engine_options.device = options.device;
  engine_options.exact = true;
  engine_options.num_threads = options.num_threads;
  const auto float_engine = engine::LayerOuterEngine::open(options.model, engine_options);
  const auto engine = engine::LayerOuterEngine::open(options.output, engine_options);
  std::vector<eval::Model> models;
  models.push_back({.name = options.model.string(), .engine = float_engine.get(), .layer_outer = float_engine.get()});
  models.push_back({.name = options.output.string(), .engine = engine.get(), .layer_outer = engine.get()});
  return eval::evaluate(models, plan);
}

quantize::Judgment judge_output(const quantize::PipelineOptions& options, const JudgeOptions& judge,
                                const JudgedText& text, const eval::Plan& plan) {
  log::info("judging on {} windows of {} tokens of {}", text.num_windows, text.window_len, text.name);
  const eval::Report report = walk(options, plan);
  const eval::ModelReport& quantized = report.models.back();
  const eval::Metric& kl = find_metric(quantized, "kl");
  return {.kl = kl.value(),
          .kl_standard_error = kl.standard_error(),
          .top1 = find_metric(quantized, "top1").value(),
          .ppl = find_metric(quantized, "ppl").value(),
          .float_ppl = find_metric(report.models.front(), "ppl").value(),
          .text = text.name,
          .num_windows = text.num_windows,
          .window_len = text.window_len,
          .max_kl = judge.max_kl,
          .is_rejected = report.outcome() == eval::Outcome::Rejected};
}

}  // namespace

QuantizeResult quantize_and_judge(const quantize::PipelineOptions& options, const std::optional<JudgeOptions>& judge) {
  QuantizeResult result;
  if (!judge) {
    result.quantized = quantize::run_pipeline(options);
    return result;
  }
  const JudgedText text = choose_text(options, *judge);
  const eval::Plan plan = make_plan(options, *judge, text);
  result.quantized = quantize::run_pipeline(options, [&] {
    try {
      result.judgment = judge_output(options, *judge, text, plan);
      quantize::record_judgment(options.output, *result.judgment);
    } catch (const Error& error) {
      throw error.in("the checkpoint is complete, but judging it failed, which --resume repeats");
    }
  });
  return result;
}

}  // namespace nibble::workflow
