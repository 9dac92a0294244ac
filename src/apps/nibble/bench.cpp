#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "apps/nibble/batch_speed.h"
#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "engine/engine.h"
#include "hub/hub.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model;
  std::vector<std::int64_t> batch_sizes{1};
  std::vector<std::int64_t> input_lens{512};
  std::int64_t output_len = 128;
  std::vector<std::string> shapes;
  BatchRepeats repeats;
  std::string json_file;
  engine::EngineOptions engine;
};

/// "8x480x64". Errors: InvalidArgument.
BatchShape parse_shape(const std::string& text) {
  BatchShape shape;
  int end = 0;
  const int num_read =
      std::sscanf(text.c_str(), "%9ldx%9ldx%9ld%n", &shape.batch_size, &shape.input_len, &shape.output_len, &end);
  const bool is_whole = num_read == 3 && static_cast<std::size_t>(end) == text.size();
  if (!is_whole || shape.batch_size < 1 || shape.input_len < 1 || shape.output_len < 1) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--shape {}: is no BATCHxINPUTxOUTPUT, like 8x512x128", text));
  }
  return shape;
}

std::vector<BatchShape> shapes_of(const BenchOptions& options) {
  std::vector<BatchShape> shapes;
  for (const std::string& text : options.shapes) shapes.push_back(parse_shape(text));
  if (!shapes.empty()) return shapes;
  for (const std::int64_t input_len : options.input_lens) {
    for (const std::int64_t batch_size : options.batch_sizes) {
      shapes.push_back({.batch_size = batch_size, .input_len = input_len, .output_len = options.output_len});
    }
  }
  return shapes;
}

void check_length(const engine::Engine& engine, const BatchShape& shape) {
  if (shape.input_len + shape.output_len <= engine.max_model_len()) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("--input-len {} and --output-len {}: together beyond the context of {} tokens",
                          shape.input_len, shape.output_len, engine.max_model_len()));
}

void print_head(const engine::Engine& engine, const BenchOptions& options, double load_seconds) {
  print(fmt::format("{}: {}\n", options.model, engine.description()));
  print(fmt::format("ready in {:.2f} s, weights {:.1f} MB\n", load_seconds,
                    static_cast<double>(engine.weight_bytes()) / 1e6));
  print(fmt::format("{:<8} {:>6} {:>8} {:>12} {:>12}\n", "phase", "batch", "tokens", "tokens/s", "ms"));
}

void print_speed(const BatchShape& shape, const BatchSpeed& speed) {
  const auto row = [&](std::string_view phase, std::int64_t num_tokens, double tokens_per_s, double seconds) {
    print(fmt::format("{:<8} {:>6} {:>8} {:>12.1f} {:>12.3f}\n", phase, shape.batch_size, num_tokens, tokens_per_s,
                      1e3 * seconds));
  };
  const double prefill = static_cast<double>(shape.batch_size * shape.input_len) / speed.prefill_tokens_per_s;
  row("prefill", shape.input_len, speed.prefill_tokens_per_s, prefill);
  if (speed.decode_step_seconds > 0) {
    row("decode", shape.output_len, speed.decode_tokens_per_s, speed.decode_step_seconds);
  } else if (shape.output_len > 1) {
    log::warning("batch {}: the first sequences ended before the last ones began; raise --output-len",
                 shape.batch_size);
  }
  if (speed.num_preemptions > 0) {
    log::warning("batch {}: {} sequences were preempted, the KV cache is too small for this batch", shape.batch_size,
                 speed.num_preemptions);
  }
}

Json to_json(const BatchShape& shape, const BatchSpeed& speed) {
  return {{"batch_size", shape.batch_size},
          {"input_len", shape.input_len},
          {"output_len", shape.output_len},
          {"latency_seconds", speed.latency_seconds},
          {"prefill_tokens_per_s", speed.prefill_tokens_per_s},
          {"decode_tokens_per_s", speed.decode_tokens_per_s},
          {"decode_step_seconds", speed.decode_step_seconds},
          {"num_preemptions", speed.num_preemptions}};
}

int bench(BenchOptions options) {
  // Random prompts share no prefix; looking for one would be part of what is measured.
  options.engine.enable_prefix_caching = false;
  const std::vector<BatchShape> shapes = shapes_of(options);
  const std::int64_t largest = std::ranges::max(shapes, {}, &BatchShape::batch_size).batch_size;
  options.engine.max_num_seqs = std::max(options.engine.max_num_seqs, largest);
  const Clock::time_point start = Clock::now();
  const auto engine = engine::Engine::load(hub::resolve_model(options.model), options.engine);
  const double load_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  for (const BatchShape& shape : shapes) check_length(*engine, shape);
  print_head(*engine, options, load_seconds);
  std::mt19937 random(0);
  Json rows = Json::array();
  for (const BatchShape& shape : shapes) {
    const BatchSpeed speed = measure_batches(*engine, shape, options.repeats, random);
    print_speed(shape, speed);
    rows.push_back(to_json(shape, speed));
  }
  if (!options.json_file.empty()) {
    const Json json = {{"model", options.model},
                       {"description", engine->description()},
                       {"iterations", options.repeats.measured},
                       {"load_seconds", load_seconds},
                       {"weight_bytes", engine->weight_bytes()},
                       {"rows", rows}};
    write_text_file(options.json_file, json.dump(2) + "\n");
  }
  return 0;
}

}  // namespace

std::function<int()> add_bench(CLI::App& command) {
  auto options = std::make_shared<BenchOptions>();
  command.add_option("model", options->model, "folder, GGUF file or Hub name")->required()->type_name("MODEL");
  command.add_option("--batch-size", options->batch_sizes, "sequences at once; several are measured one by one")
      ->check(at_least(1))
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--input-len", options->input_lens, "prompt tokens a sequence; several likewise")
      ->check(at_least(1))
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--output-len", options->output_len, "tokens generated a sequence")
      ->check(at_least(1))
      ->capture_default_str();
  command
      .add_option("--shape", options->shapes, "BATCHxINPUTxOUTPUT, like 8x512x128: these instead of the three above")
      ->delimiter(',');
  command.add_option("--iterations,--num-iters", options->repeats.measured, "measured batches; medians are printed")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--num-iters-warmup", options->repeats.warmup, "batches before those")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--json,--output-json", options->json_file, "write the result there too")->type_name("FILE");
  add_engine_flags(command, options->engine);
  command.add_option("--max-num-batched-tokens", options->engine.max_num_batched_tokens, "tokens of one step at most")
      ->check(at_least(1))
      ->capture_default_str();
  command
      .add_option("--gpu-memory-utilization", options->engine.gpu_memory_utilization,
                  "part of the GPU's memory that weights, activations and KV cache take")
      ->check(between(0, 1))
      ->capture_default_str();
  return [options] { return bench(*options); };
}

}  // namespace nibble::apps
