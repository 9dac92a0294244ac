#include "quantize/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "core/log.h"
#include "core/progress.h"
#include "quantize/activation_stream.h"
#include "quantize/calibration_linear.h"
#include "quantize/loss_pipeline.h"
#include "quantize/output.h"
#include "quantize/output_error.h"
#include "quantize/plan.h"
#include "quantize/rtn.h"

namespace nibble::quantize {
namespace {

bool is_finite(const StageInputs& inputs) {
  if (!inputs.gram.is_empty()) {
    return std::ranges::all_of(inputs.gram.span<float>(), [](float value) { return std::isfinite(value); });
  }
  return std::isfinite(inputs.range) && std::isfinite(inputs.key_range) && std::isfinite(inputs.value_range);
}

/// Errors: Corrupt, naming the stage by its first linear.
void expect_finite(const StageInputs& inputs, const std::vector<FloatLinear>& linears) {
  if (!is_finite(inputs)) {
    throw Error(ErrorCode::Corrupt,
                linears.front().name +
                    ": its input holds NaN or infinity during calibration; the float model is broken "
                    "in this layer or in one before it");
  }
}

/// One run over a model. The pieces are made in the order in which they are needed.
class Pipeline {
 public:
  Pipeline(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options)
      : checkpoint_(checkpoint),
        plan_(plan),
        options_(options),
        calibration_(plan.method->calibration(options.method_options)),
        quantizer_(plan.method->make(options.method_options)) {
    backend_ = backend::make_backend(options.device,
                                     {.precision = backend::Precision::Exact, .num_threads = options.num_threads});
  }

  PipelineReport run() {
    // The samples come first: an unreadable calibration file must not leave a begun output folder behind.
    std::optional<CalibrationSamples> samples;
    if (calibration_ != Calibration::None) samples = draw_samples();
    if (calibration_ == Calibration::Loss) return run_by_loss(*samples);
    if (samples) start_stream(*samples);
    Output output(checkpoint_, plan_, options_);
    Progress progress("Quantizing", static_cast<std::int64_t>(plan_.blocks.size()), "blocks");
    PipelineReport report;
    for (const models::BlockSpec& spec : plan_.blocks) {
      report.blocks.push_back(quantize_block(load_float_block(checkpoint_, spec), output));
      log_block(report.blocks.back());
      progress.update(static_cast<std::int64_t>(report.blocks.size()));
    }
    output.finish();
    report.output_bytes = output.total_bytes();
    return report;
  }

 private:
  CalibrationSamples draw_samples() const {
    CalibrationSamples samples = make_samples(checkpoint_, options_.calibration, options_.num_threads);
    log::info("calibrating with {} samples of {} tokens from {}, seed {}", samples.num_samples, samples.seq_len,
              options_.calibration.source, options_.calibration.seed);
    return samples;
  }

  /// Blocks last to first; the report has them in the model's order.
  PipelineReport run_by_loss(const CalibrationSamples& samples) {
    Output output(checkpoint_, plan_, options_);
    LossPipeline pipeline(checkpoint_, plan_, options_, *backend_, *quantizer_);
    pipeline.start(samples);
    const auto num_blocks = static_cast<std::int64_t>(plan_.blocks.size());
    Progress progress("Backward pass", num_blocks, "blocks");
    PipelineReport report;
    for (std::int64_t b = num_blocks - 1; b >= 0; --b) {
      report.blocks.insert(report.blocks.begin(), pipeline.quantize_block(b, output));
      log_block(report.blocks.front());
      progress.update(num_blocks - b);
    }
    output.finish();
    report.output_bytes = output.total_bytes();
    return report;
  }

  void start_stream(const CalibrationSamples& samples) {
    rope_ = backend_->make_rope({.inv_freq = models::rope_inverse_frequencies(plan_.config),
                                 .attention_factor = 1,
                                 .max_positions = samples.seq_len});
    InputStatistics wanted;
    if (calibration_ == Calibration::Ranges) {
      wanted = {InputStatistics::Kind::Range, options_.method_options.fp8.percentile};
    }
    stream_ = std::make_unique<ActivationStream>(*backend_, *rope_, samples, wanted);
    const std::string table = std::string(plan_.architecture->embedding) + ".weight";
    const auto embedding = backend_->make_embedding({Tensor::borrow(checkpoint_.tensor(table))});
    stream_->embed(*embedding, plan_.config.hidden_size);
  }

  models::DecoderBlock make_block(const FloatBlock& block) const {
    return {block.spec, backend_->make_vector(block.input_norm), backend_->make_vector(block.post_attention_norm)};
  }

  BlockReport quantize_block(FloatBlock block, Output& output) {
    MeanError rtn_error;
    MeanError method_error;
    if (calibration_ == Calibration::Block) rescale(block, rtn_error);
    output.add_norms(block);
    models::DecoderBlock decoder = make_block(block);
    StageInputs inputs;
    if (stream_) inputs = stream_->enter(decoder);
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      const std::vector<FloatLinear>& linears = block.stages[s];
      if (stream_) expect_finite(inputs, linears);
      const auto quantized = quantize_stage(linears, inputs);
      output.add_stage(linears, quantized);
      if (options_.method_options.fp8.kv_cache_scales == KvCacheScales::Calibrated &&
          block.spec.stages[s].prepare == models::Prepare::Attention) {
        output.add_kv_scales(linears.front(), inputs);
      }
      if (!stream_) continue;
      const std::vector<Tensor> dequantized = dequantize_all(quantized);
      for (std::size_t i = 0; i < linears.size() && !inputs.gram.is_empty(); ++i) {
        method_error.add(error_of(linears[i], dequantized[i], inputs));
        if (calibration_ == Calibration::Stages) rtn_error.add(error_of_rtn(linears[i], inputs));
      }
      decoder.set_linear(s, make_calibration_linear(linears, dequantized, backend_->pool()));
      if (s + 1 < block.stages.size()) inputs = stream_->advance(decoder, s);
    }
    if (stream_) stream_->leave(decoder);
    return {block.spec.prefix, rtn_error.mean(), method_error.mean()};
  }

  /// The float block's own pass, and what the method does with it.
  void rescale(FloatBlock& block, MeanError& rtn_error) {
    models::DecoderBlock decoder = make_block(block);
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      decoder.set_linear(s, make_calibration_linear(block.stages[s], backend_->pool()));
    }
    const std::vector<StageInputs> inputs = stream_->observe(decoder);
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      expect_finite(inputs[s], block.stages[s]);
      for (const FloatLinear& linear : block.stages[s]) rtn_error.add(error_of_rtn(linear, inputs[s]));
    }
    quantizer_->rescale(block, inputs, backend_->pool());
  }

  std::vector<weights::LinearWeights> quantize_stage(const std::vector<FloatLinear>& linears,
                                                     const StageInputs& inputs) {
    try {
      return quantizer_->quantize(linears, inputs, backend_->pool());
    } catch (const Error& error) {
      throw error.in(linears.front().name);
    }
  }

  static std::vector<Tensor> dequantize_all(const std::vector<weights::LinearWeights>& quantized) {
    std::vector<Tensor> dequantized;
    for (const weights::LinearWeights& linear : quantized) dequantized.push_back(weights::dequantize(linear));
    return dequantized;
  }

  double error_of(const FloatLinear& linear, const Tensor& quantized, const StageInputs& inputs) const {
    return output_error(linear.weight.matrix<float>(), quantized.matrix<float>(), inputs.gram.matrix<float>(),
                        backend_->pool());
  }

  double error_of_rtn(const FloatLinear& linear, const StageInputs& inputs) const {
    const auto weight = linear.weight.matrix<float>();
    const MethodOptions& method = options_.method_options;
    // A codebook serves a whole row.
    const std::int64_t group_size =
        plan_.method->makes == Makes::GroupedInt ? method.group_size_of(weight.cols) : weight.cols;
    return error_of(linear, weights::dequantize(round_to_nearest(weight, group_size, method.grid, backend_->pool())),
                    inputs);
  }

  void log_block(const BlockReport& block) const {
    if (!stream_ || calibration_ == Calibration::Ranges) return;
    log::info("{}: output error {:.3f} % (round to nearest: {:.3f} %)", block.name, 100 * block.method_error,
              100 * block.rtn_error);
  }

  const formats::Checkpoint& checkpoint_;
  const Plan& plan_;
  const PipelineOptions& options_;
  Calibration calibration_;
  std::unique_ptr<Quantizer> quantizer_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<backend::Rope> rope_;
  std::unique_ptr<ActivationStream> stream_;  // where the method calibrates
};

}  // namespace

PipelineReport run_pipeline(const PipelineOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto checkpoint = formats::Checkpoint::open(options.model);
  const Plan plan = make_plan(*checkpoint, options);
  PipelineReport report = Pipeline(*checkpoint, plan, options).run();
  report.input_bytes = checkpoint->size_bytes();
  report.checkpoint_format = plan.format;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble::quantize
