#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <random>
#include <string>
#include <utility>

#include "core/log.h"
#include "core/progress.h"
#include "engine/engine.h"
#include "quantize/calibration.h"

namespace nibble::quantize {
namespace {

/// Collects continuations on the engine's thread; the caller waits for all of them.
class Collector {
 public:
  explicit Collector(CalibrationSamples& samples) : samples_(samples), next_(first_positions(samples)) {}

  void add(std::int64_t sample, const engine::RequestOutput& output) {
    {
      const std::lock_guard lock(mutex_);
      for (const std::int32_t token : output.tokens) {
        samples_.tokens[static_cast<std::size_t>(next_[static_cast<std::size_t>(sample)]++)] = token;
      }
      if (output.finish_reason == engine::FinishReason::None) return;
      if (output.finish_reason != engine::FinishReason::Length)
        error_ = output.error.empty() ? "aborted" : output.error;
      ++num_done_;
    }
    changed_.notify_one();
  }

  /// Returns when every sample is complete. Errors: Internal with the engine's reason.
  void wait() {
    Progress progress("Writing calibration samples", samples_.num_samples, "samples");
    std::unique_lock lock(mutex_);
    for (std::int64_t shown = 0; num_done_ < samples_.num_samples && error_.empty();) {
      changed_.wait(lock, [&] { return num_done_ > shown || !error_.empty(); });
      shown = num_done_;
      progress.update(shown);
    }
    if (!error_.empty()) throw Error(ErrorCode::Internal, "the model could not write calibration samples: " + error_);
  }

 private:
  /// The prompt's token stands in front of each sample.
  static std::vector<std::int64_t> first_positions(const CalibrationSamples& samples) {
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < samples.num_samples; ++i) positions.push_back(i * samples.seq_len + 1);
    return positions;
  }

  CalibrationSamples& samples_;
  std::vector<std::int64_t> next_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t num_done_ = 0;
  std::string error_;
};

/// Even samples begin as the model's own texts do, odd ones with a random token, which leads to other corners.
std::vector<std::int32_t> first_tokens(const engine::Engine& engine, const CalibrationOptions& options) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  const auto vocab_size = static_cast<std::uint64_t>(std::min(tokenizer.vocab_size(), engine.config().vocab_size));
  std::mt19937_64 random(options.seed);
  const auto draw = [&] {
    for (;;) {
      const auto token = static_cast<std::int32_t>(random() % vocab_size);
      if (!tokenizer.is_special(token)) return token;
    }
  };
  const auto bos = tokenizer.bos_token_id();
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < options.num_samples; ++i) tokens.push_back(i % 2 == 0 && bos ? *bos : draw());
  return tokens;
}

engine::Request make_request(std::int64_t sample, std::int32_t first_token, const CalibrationOptions& options,
                             Collector& collector) {
  engine::Request request;
  request.id = fmt::format("calibration-{}", sample);
  request.prompt = {first_token};
  request.params.temperature = 1;
  request.params.seed = options.seed + static_cast<std::uint64_t>(sample);
  request.params.max_tokens = options.seq_len - 1;
  request.params.ignore_eos = true;
  request.on_output = [sample, &collector](const engine::RequestOutput& output) { collector.add(sample, output); };
  return request;
}

}  // namespace

CalibrationSamples write_own_samples(const std::filesystem::path& model, const CalibrationOptions& options,
                                     int num_threads) {
  CalibrationSamples samples;
  samples.num_samples = options.num_samples;
  samples.seq_len = options.seq_len;
  samples.tokens.resize(static_cast<std::size_t>(options.num_samples * options.seq_len));
  Collector collector(samples);  // outlives the engine, whose thread fills it

  engine::EngineOptions engine_options;
  engine_options.device = "cpu";  // the same samples on every machine
  engine_options.num_threads = num_threads;
  engine_options.max_model_len = options.seq_len;
  engine_options.enable_prefix_caching = false;
  const auto engine = engine::Engine::load(model, engine_options);
  log::info("the model writes {} calibration samples of {} tokens itself", options.num_samples, options.seq_len);
  const std::vector<std::int32_t> first = first_tokens(*engine, options);
  for (std::int64_t i = 0; i < options.num_samples; ++i) {
    samples.tokens[static_cast<std::size_t>(i * options.seq_len)] = first[static_cast<std::size_t>(i)];
    engine->submit(make_request(i, first[static_cast<std::size_t>(i)], options, collector));
  }
  collector.wait();
  return samples;
}

}  // namespace nibble::quantize
