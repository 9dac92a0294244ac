#include "quantize/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/crash_point.h"
#include "core/heap.h"
#include "core/log.h"
#include "core/progress.h"
#include "quantize/activation_stream.h"
#include "quantize/calibration_linear.h"
#include "quantize/coverage.h"
#include "quantize/drift.h"
#include "quantize/journal.h"
#include "quantize/loss_pipeline.h"
#include "quantize/output.h"
#include "quantize/output_error.h"
#include "quantize/plan.h"
#include "quantize/report.h"
#include "quantize/resources.h"
#include "quantize/rtn.h"
#include "quantize/run_identity.h"
#include "quantize/saved_samples.h"
#include "quantize/stage_quantizers.h"
#include "quantize/stream_states.h"

namespace nibble::quantize {
namespace {

/// Means of the relative errors over the linears of a block.
BlockReport summarize(const JournalEntry& entry) {
  BlockReport report{.name = entry.block};
  for (const LayerReport& layer : entry.layers) {
    report.rtn_error += layer.rtn_error.value_or(0) / static_cast<double>(entry.layers.size());
    report.method_error += layer.output_error.value_or(0) / static_cast<double>(entry.layers.size());
  }
  return report;
}

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
        quantizers_(*plan.method, options.method_options) {
    backend_ = backend::make_backend(options.device,
                                     {.precision = backend::Precision::Exact, .num_threads = options.num_threads});
  }

  /// Before anything is written. Errors: as quantize/resources.h.
  void check_resources() {
    resources_ = estimate_resources(plan_, options_);
    max_memory_ = preflight(resources_, options_, backend_->memory().free_bytes, backend_->pool());
  }

  PipelineReport run(Journal& journal) {
    const bool is_written = journal.is_written();
    if (!is_written && calibration_ != Calibration::None) start(journal);
    Output output(checkpoint_, plan_, options_, journal);
    if (!is_written) {
      calibration_ == Calibration::Loss ? quantize_by_loss(journal, output) : quantize_blocks(journal, output);
      coverage_.report();
      output.add_rest();
      JournalEntry last{.is_last = true};
      output.sync(last);
      journal.append(std::move(last));
    }
    PipelineReport report;
    for (const models::BlockSpec& spec : plan_.blocks) add_to(report, *journal.find_block(spec.prefix));
    report.output_bytes = output.total_bytes();
    output.finish(make_report(report, journal.identity()));
    return report;
  }

 private:
  void quantize_blocks(Journal& journal, Output& output) {
    Progress progress("Quantizing", static_cast<std::int64_t>(plan_.blocks.size()), "blocks");
    std::int64_t num_done = 0;
    for (const models::BlockSpec& spec : plan_.blocks) {
      if (journal.find_block(spec.prefix) != nullptr) {
        output.skip(spec);
      } else {
        const std::vector<StageChoice>& choices = plan_.stages[static_cast<std::size_t>(num_done)];
        record(quantize_block(load_float_block(checkpoint_, spec), choices, output), output, journal);
      }
      progress.update(++num_done);
    }
  }

  /// Makes a finished block durable.
  void record(JournalEntry entry, Output& output, Journal& journal) {
    crash_point();
    output.sync(entry);
    crash_point();
    if (states_) states_->save(entry);
    log_block(entry);
    journal.append(std::move(entry));
    return_freed_memory();
  }

  CalibrationSamples draw_samples(Journal& journal) const {
    CalibrationSamples samples = make_saved_samples(checkpoint_, options_.calibration, options_.num_threads, journal);
    log::info("calibrating with {} samples of {} tokens from {}, seed {}", samples.num_samples, samples.seq_len,
              describe_sources(options_.calibration), options_.calibration.seed);
    warn_of_poor_samples(samples, resources_.widest_input, plan_.config.vocab_size);
    return samples;
  }

  /// Blocks last to first.
  void quantize_by_loss(Journal& journal, Output& output) {
    const auto num_blocks = static_cast<std::int64_t>(plan_.blocks.size());
    Progress progress("Backward pass", num_blocks, "blocks");
    for (std::int64_t b = num_blocks - 1; b >= 0; --b) {
      const models::BlockSpec& spec = plan_.blocks[static_cast<std::size_t>(b)];
      if (journal.find_block(spec.prefix) != nullptr) {
        output.skip(spec);
      } else {
        record(loss_->quantize_block(b, output), output, journal);
      }
      progress.update(num_blocks - b);
    }
  }

  /// Where an earlier run of this journal stopped, or in front of the first block.
  void start(Journal& journal) {
    if (calibration_ == Calibration::Loss) {
      start_loss(journal);
      return;
    }
    const CalibrationSamples samples = draw_samples(journal);
    StreamStorage storage = choose_storage(resources_, max_memory_);
    storage.folder = journal.scratch();
    start_stream(samples, storage);
    states_.emplace(
        journal, [this](const auto& file) { save_streams(file); }, [this](const auto& file) { restore_streams(file); });
    states_->restore();
  }

  void save_streams(const std::filesystem::path& file) {
    std::vector<const ActivationStream*> streams{stream_.get()};
    if (float_stream_) streams.push_back(&float_stream_->stream());
    ActivationStream::save(streams, file);
  }
  void restore_streams(const std::filesystem::path& file) {
    std::vector<ActivationStream*> streams{stream_.get()};
    if (float_stream_) streams.push_back(&float_stream_->stream());
    ActivationStream::restore(streams, file);
  }

  /// The forward pass, or what an earlier run has kept of it.
  void start_loss(Journal& journal) {
    constexpr const char* kBlockInputs = "block-inputs";
    loss_ = std::make_unique<LossPipeline>(checkpoint_, plan_, options_, *backend_, quantizers_);
    if (loss_->has_statistics()) {
      log::info("the end loss's statistics are those in {}", options_.statistics.string());
      return;
    }
    loss_->begin_walk(draw_samples(journal), journal.state_path(kBlockInputs));
    states_.emplace(
        journal, [this](const auto& file) { loss_->walk().save(file); },
        [this](const auto& file) { loss_->walk().restore(file); });
    if (states_->restore()) return;
    loss_->forward();
    states_->save_start(kBlockInputs);
  }

  void start_stream(const CalibrationSamples& samples, const StreamStorage& storage) {
    rope_ = backend_->make_rope({.inv_freq = models::rope_inverse_frequencies(plan_.config),
                                 .attention_factor = 1,
                                 .max_positions = samples.seq_len});
    InputStatistics wanted;
    if (calibration_ == Calibration::Ranges) {
      wanted = {InputStatistics::Kind::Range, options_.method_options.fp8.percentile};
    }
    const std::string table = std::string(plan_.architecture->embedding) + ".weight";
    const auto embedding = backend_->make_embedding({Tensor::borrow(checkpoint_.tensor(table))});
    const auto make_stream = [&](const InputStatistics& statistics) {
      auto stream = std::make_unique<ActivationStream>(*backend_, *rope_, samples, statistics);
      stream->set_storage(storage);
      stream->embed(*embedding, plan_.config.hidden_size);
      return stream;
    };
    stream_ = make_stream(wanted);
    if (options_.method_options.drift_correction == 0) return;
    float_stream_.emplace(make_stream({.kind = InputStatistics::Kind::None}), backend_->pool());
  }

  models::DecoderBlock make_block(const FloatBlock& block) const {
    return {block.spec, backend_->make_vector(block.input_norm), backend_->make_vector(block.post_attention_norm)};
  }

  JournalEntry quantize_block(FloatBlock block, const std::vector<StageChoice>& choices, Output& output) {
    JournalEntry entry{.block = block.spec.prefix};
    std::vector<std::vector<double>> rtn_errors;  // [stages][linears], where the method looks at the float block first
    Stopwatch watch;
    if (calibration_ == Calibration::Block) rtn_errors = rescale(block, choices);
    output.add_norms(block);
    models::DecoderBlock decoder = make_block(block);
    StageInputs inputs;
    if (stream_) inputs = stream_->enter(decoder);
    if (float_stream_) float_stream_->enter(make_block(block));
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      const std::vector<FloatLinear>& linears = block.stages[s];
      if (stream_) expect_finite(inputs, linears);
      coverage_.add(linears, inputs);
      if (float_stream_) follow_float_model(block.stages[s], inputs, choices[s], s);
      const auto quantized = quantize_stage(linears, inputs, choices[s]);
      output.add_stage(linears, quantized, choices[s]);
      if (options_.method_options.fp8.kv_cache_scales == KvCacheScales::Calibrated &&
          block.spec.stages[s].prepare == models::Prepare::Attention) {
        output.add_kv_scales(linears.front(), inputs);
      }
      std::vector<Tensor> dequantized = dequantize_all(quantized);
      const std::size_t first_layer = entry.layers.size();
      for (std::size_t i = 0; i < linears.size(); ++i) {
        LayerReport& layer = entry.layers.emplace_back(describe_layer(
            linears[i].name, linears[i].weight.matrix<float>(), quantized[i], dequantized[i].matrix<float>()));
        if (inputs.gram.is_empty()) continue;
        layer.output_error = error_of(linears[i], dequantized[i], inputs);
        layer.rtn_error = rtn_errors.empty() ? error_of_rtn(linears[i], inputs, choices[s].options) : rtn_errors[s][i];
      }
      if (stream_) {
        decoder.set_linear(s, make_calibration_linear(linears, dequantized, backend_->pool()));
        dequantized.clear();
        block.stages[s].clear();  // memory at the peak: each stage's weights go when they are no longer needed
        inputs = {};
        if (s + 1 < block.stages.size()) {
          inputs = stream_->advance(decoder, s);
          decoder.set_linear(s, nullptr);
        }
      }
      share_time(std::span(entry.layers).subspan(first_layer), watch.lap());
    }
    if (stream_) stream_->leave(decoder);
    return entry;
  }

  /// The float block's own pass, and what the method does with it. Returns what rounding its weights to nearest would
  /// cost, [stages][linears].
  std::vector<std::vector<double>> rescale(FloatBlock& block, const std::vector<StageChoice>& choices) {
    models::DecoderBlock decoder = make_block(block);
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      decoder.set_linear(s, make_calibration_linear(block.stages[s], backend_->pool()));
    }
    const std::vector<StageInputs> inputs = stream_->observe(decoder);
    std::vector<std::vector<double>> rtn_errors(block.stages.size());
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      expect_finite(inputs[s], block.stages[s]);
      for (const FloatLinear& linear : block.stages[s]) {
        rtn_errors[s].push_back(error_of_rtn(linear, inputs[s], choices[s].options));
      }
    }
    quantizers_.for_blocks().rescale(block, inputs, backend_->pool());
    return rtn_errors;
  }

  /// Takes the float model's stream past the stage. The stage's weights are corrected for what their inputs have
  /// drifted from that stream's, but where they stay float.
  void follow_float_model(std::vector<FloatLinear>& linears, const StageInputs& inputs, const StageChoice& choice,
                          std::size_t stage_idx) {
    Drift drift;
    if (!choice.is_skipped) drift = float_stream_->measure_drift(*stream_, stage_idx);
    float_stream_->advance(linears, stage_idx);
    if (choice.is_skipped) return;
    try {
      correct_drift(linears, inputs, drift, choice.options.drift_correction, backend_->pool());
    } catch (const Error& error) {
      throw error.in(linears.front().name);
    }
  }

  std::vector<weights::LinearWeights> quantize_stage(const std::vector<FloatLinear>& linears, const StageInputs& inputs,
                                                     const StageChoice& choice) {
    if (choice.is_skipped) return keep_all_float(linears);
    try {
      return quantizers_.of(choice).quantize(linears, inputs, backend_->pool());
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

  double error_of_rtn(const FloatLinear& linear, const StageInputs& inputs, const MethodOptions& method) const {
    const auto weight = linear.weight.matrix<float>();
    // A codebook serves a whole row.
    const std::int64_t group_size =
        plan_.method->makes == Makes::GroupedInt ? method.group_size_of(weight.cols) : weight.cols;
    return error_of(linear, weights::dequantize(round_to_nearest(weight, group_size, method.grid, backend_->pool())),
                    inputs);
  }

  void log_block(const JournalEntry& entry) const {
    if (calibration_ == Calibration::None || calibration_ == Calibration::Ranges) return;
    const BlockReport block = summarize(entry);
    log::info("{}: output error {:.3f} % (round to nearest: {:.3f} %)", block.name, 100 * block.method_error,
              100 * block.rtn_error);
  }

  Report make_report(const PipelineReport& report, const Json& identity) const {
    return {.arguments = options_.arguments,
            .model = options_.model.string(),
            .identity = identity,
            .checkpoint_format = std::string(plan_.method->checkpoint_format(options_.method_options)),
            .input_bytes = checkpoint_.size_bytes(),
            .output_bytes = report.output_bytes,
            .layers = report.layers};
  }

  static void add_to(PipelineReport& report, const JournalEntry& entry) {
    report.blocks.push_back(summarize(entry));
    report.layers.insert(report.layers.end(), entry.layers.begin(), entry.layers.end());
  }

  const formats::Checkpoint& checkpoint_;
  const Plan& plan_;
  const PipelineOptions& options_;
  Calibration calibration_;
  StageQuantizers quantizers_;
  std::unique_ptr<backend::Backend> backend_;
  Resources resources_;
  std::int64_t max_memory_ = 0;
  ActivationCoverage coverage_;
  std::unique_ptr<backend::Rope> rope_;
  std::unique_ptr<ActivationStream> stream_;  // where the method calibrates
  std::optional<FloatStream> float_stream_;   // where weights are corrected for drift
  std::unique_ptr<LossPipeline> loss_;        // where it looks at the end loss
  std::optional<StreamStates> states_;        // of either
};

}  // namespace

PipelineReport run_pipeline(const PipelineOptions& options, const std::function<void()>& judge) {
  const auto start = std::chrono::steady_clock::now();
  auto checkpoint = formats::Checkpoint::open(options.model);
  const Plan plan = make_plan(*checkpoint, options);
  auto pipeline = std::make_unique<Pipeline>(*checkpoint, plan, options);
  pipeline->check_resources();
  Journal journal(options.output, options.resume, run_identity(*checkpoint, plan, options));
  PipelineReport report;
  if (journal.is_finished()) {
    log::info("{}: was finished already", options.output.string());
    report.output_bytes = read_report(options.output).output_bytes;
  } else {
    report = pipeline->run(journal);
  }
  report.input_bytes = checkpoint->size_bytes();
  report.checkpoint_format = plan.format;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  pipeline.reset();
  checkpoint.reset();
  if (judge) {
    return_freed_memory();
    crash_point();
    judge();
  }
  journal.remove();
  return report;
}

}  // namespace nibble::quantize
