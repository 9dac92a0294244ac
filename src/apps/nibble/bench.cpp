#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "engine/engine.h"
#include "hub/hub.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model;
  std::int64_t batch_size = 1;
  std::int64_t input_len = 512;
  std::int64_t output_len = 128;
  std::int64_t iterations = 3;
  std::string json_file;
  engine::EngineOptions engine;
};

/// When tokens arrived; filled on the engine's thread.
class Arrivals {
 public:
  explicit Arrivals(std::int64_t batch_size) : waiting_(batch_size), running_(batch_size) {}

  void add(const engine::RequestOutput& output) {
    const Clock::time_point now = Clock::now();
    const std::lock_guard lock(mutex_);
    if (!output.error.empty()) error_ = output.error;
    // A sequence's first token ends its prefill; what the others decode meanwhile belongs to no phase.
    if (output.num_output_tokens > 0 && output.num_output_tokens == static_cast<std::int64_t>(output.tokens.size())) {
      if (--waiting_ == 0) all_started_ = now;
    } else if (waiting_ == 0) {
      num_decoded_ += static_cast<std::int64_t>(output.tokens.size());
    }
    if (output.finish_reason == engine::FinishReason::None) return;
    finished_ = now;
    if (--running_ == 0) done_.notify_one();
  }

  /// Errors: Internal when a request failed.
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    if (!error_.empty()) throw Error(ErrorCode::Internal, error_);
  }
  Clock::time_point all_started() const { return all_started_; }
  Clock::time_point finished() const { return finished_; }
  std::int64_t num_decoded() const { return num_decoded_; }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  std::string error_;
  std::int64_t waiting_;
  std::int64_t running_;
  std::int64_t num_decoded_ = 0;
  Clock::time_point all_started_;
  Clock::time_point finished_;
};

struct Iteration {
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::int64_t num_decoded = 0;
};

/// One batch of random prompts, all submitted at once. Prompts differ between sequences and iterations.
Iteration run_batch(engine::Engine& engine, const BenchOptions& options, std::mt19937& random) {
  Arrivals arrivals(options.batch_size);
  std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(engine.config().vocab_size - 1));
  std::vector<engine::Request> requests(static_cast<std::size_t>(options.batch_size));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    engine::Request& request = requests[i];
    request.id = fmt::format("bench-{}", i);
    request.prompt.resize(static_cast<std::size_t>(options.input_len));
    for (std::int32_t& id : request.prompt) id = token(random);
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = options.output_len;
    request.on_output = [&arrivals](const engine::RequestOutput& output) { arrivals.add(output); };
  }
  const Clock::time_point start = Clock::now();
  for (engine::Request& request : requests) engine.submit(std::move(request));
  arrivals.wait();
  const auto seconds = [](Clock::duration duration) { return std::chrono::duration<double>(duration).count(); };
  return {.prefill_seconds = seconds(arrivals.all_started() - start),
          .decode_seconds = seconds(arrivals.finished() - arrivals.all_started()),
          .num_decoded = arrivals.num_decoded()};
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

struct Result {
  double load_seconds = 0;
  double prefill_tokens_per_s = 0;
  double decode_tokens_per_s = 0;  // all sequences together
};

Result measure(engine::Engine& engine, const BenchOptions& options) {
  std::mt19937 random(0);
  run_batch(engine, options, random);  // touches memory that later iterations find in place
  std::vector<double> prefill;
  std::vector<double> decode;
  for (std::int64_t i = 0; i < options.iterations; ++i) {
    const Iteration iteration = run_batch(engine, options, random);
    prefill.push_back(static_cast<double>(options.batch_size * options.input_len) / iteration.prefill_seconds);
    if (iteration.num_decoded > 0) {
      decode.push_back(static_cast<double>(iteration.num_decoded) / iteration.decode_seconds);
    }
  }
  return {.prefill_tokens_per_s = median(prefill), .decode_tokens_per_s = decode.empty() ? 0 : median(decode)};
}

void print_result(const engine::Engine& engine, const BenchOptions& options, const Result& result) {
  print(fmt::format("{}: {}\n", options.model, engine.description()));
  print(fmt::format("ready in {:.2f} s, weights {:.1f} MB\n", result.load_seconds,
                    static_cast<double>(engine.weight_bytes()) / 1e6));
  print(fmt::format("{:<8} {:>6} {:>8} {:>12}\n", "phase", "batch", "tokens", "tokens/s"));
  print(fmt::format("{:<8} {:>6} {:>8} {:>12.1f}\n", "prefill", options.batch_size, options.input_len,
                    result.prefill_tokens_per_s));
  if (result.decode_tokens_per_s > 0) {
    print(fmt::format("{:<8} {:>6} {:>8} {:>12.1f}\n", "decode", options.batch_size, options.output_len,
                      result.decode_tokens_per_s));
  }
}

void write_result(const engine::Engine& engine, const BenchOptions& options, const Result& result) {
  const Json json = {{"model", options.model},
                     {"description", engine.description()},
                     {"batch_size", options.batch_size},
                     {"input_len", options.input_len},
                     {"output_len", options.output_len},
                     {"iterations", options.iterations},
                     {"load_seconds", result.load_seconds},
                     {"weight_bytes", engine.weight_bytes()},
                     {"prefill_tokens_per_s", result.prefill_tokens_per_s},
                     {"decode_tokens_per_s", result.decode_tokens_per_s}};
  write_text_file(options.json_file, json.dump(2) + "\n");
}

int bench(BenchOptions options) {
  // Random prompts share no prefix; looking for one would be part of what is measured.
  options.engine.enable_prefix_caching = false;
  options.engine.max_num_seqs = std::max(options.engine.max_num_seqs, options.batch_size);
  const Clock::time_point start = Clock::now();
  const auto engine = engine::Engine::load(hub::resolve_model(options.model), options.engine);
  const double load_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (options.input_len + options.output_len > engine->max_model_len()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--input-len {} and --output-len {}: together beyond the context of {} tokens",
                            options.input_len, options.output_len, engine->max_model_len()));
  }
  Result result = measure(*engine, options);
  result.load_seconds = load_seconds;
  print_result(*engine, options, result);
  if (!options.json_file.empty()) write_result(*engine, options, result);
  return 0;
}

}  // namespace

std::function<int()> add_bench(CLI::App& command) {
  auto options = std::make_shared<BenchOptions>();
  command.add_option("model", options->model, "folder, GGUF file or Hub name")->required()->type_name("MODEL");
  command.add_option("--batch-size", options->batch_size, "sequences at once")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--input-len", options->input_len, "prompt tokens a sequence")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--output-len", options->output_len, "tokens generated a sequence")
      ->check(at_least(1))
      ->capture_default_str();
  command
      .add_option("--iterations", options->iterations, "measured batches, after one that is not; medians are printed")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--json", options->json_file, "write the result there too")->type_name("FILE");
  add_engine_flags(command, options->engine);
  command.add_option("--max-num-batched-tokens", options->engine.max_num_batched_tokens, "tokens of one step at most")
      ->check(at_least(1))
      ->capture_default_str();
  return [options] { return bench(*options); };
}

}  // namespace nibble::apps
