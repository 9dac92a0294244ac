#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <memory>
#include <string>
#include <system_error>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/serve_load.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/json.h"

namespace nibble::apps {
namespace {

struct BenchServeOptions {
  ServeLoad load;
  std::string host = "127.0.0.1";
  std::int64_t port = 8000;
  std::string request_rate = "inf";
  std::string json_file;
};

double parse_request_rate(const std::string& text) {
  if (text == "inf") return 0;
  double rate = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), rate);
  if (status == std::errc() && end == text.data() + text.size() && std::isfinite(rate) && rate > 0) return rate;
  throw Error(ErrorCode::InvalidArgument,
              "--request-rate " + text + ": give requests a second, or inf for all at once");
}

double per_second(std::int64_t count, const ServeLoadResult& result) {
  return static_cast<double>(count) / result.duration_seconds;
}

Json to_json(const LatencyStatistics& statistics) {
  return {{"mean", statistics.mean}, {"median", statistics.median}, {"p99", statistics.p99}};
}

Json to_json(const ServeLoad& load, const ServeLoadResult& result) {
  return {{"base_url", load.base_url},
          {"model", load.model},
          {"num_prompts", load.num_prompts},
          {"max_concurrency", load.max_concurrency > 0 ? Json(load.max_concurrency) : Json()},
          {"request_rate", load.request_rate > 0 ? Json(load.request_rate) : Json()},
          {"input_len", load.input_len},
          {"output_len", load.output_len},
          {"completed", result.num_completed},
          {"failed", result.errors.size()},
          {"duration_seconds", result.duration_seconds},
          {"requests_per_s", per_second(result.num_completed, result)},
          {"output_tokens_per_s", per_second(result.num_output_tokens, result)},
          {"total_tokens_per_s", per_second(result.num_input_tokens + result.num_output_tokens, result)},
          {"ttft_ms", to_json(result.ttft)},
          {"tpot_ms", to_json(result.tpot)},
          {"itl_ms", to_json(result.itl)},
          {"end_to_end_ms", to_json(result.end_to_end)}};
}

void print_result(const ServeLoad& load, const ServeLoadResult& result) {
  print(fmt::format("{} at {}: {} of {} requests in {:.2f} s, prompts of {} and outputs of {} tokens\n", load.model,
                    load.base_url, result.num_completed, load.num_prompts, result.duration_seconds, load.input_len,
                    load.output_len));
  print(fmt::format("requests/s {:.2f}   output tokens/s {:.1f}   all tokens/s {:.1f}\n",
                    per_second(result.num_completed, result), per_second(result.num_output_tokens, result),
                    per_second(result.num_input_tokens + result.num_output_tokens, result)));
  print(fmt::format("{:<24} {:>10} {:>10} {:>10}\n", "milliseconds", "mean", "median", "p99"));
  const auto row = [](std::string_view name, const LatencyStatistics& statistics) {
    print(fmt::format("{:<24} {:>10.2f} {:>10.2f} {:>10.2f}\n", name, statistics.mean, statistics.median,
                      statistics.p99));
  };
  row("time to first token", result.ttft);
  row("time per output token", result.tpot);
  row("between tokens (ITL)", result.itl);
  row("whole request", result.end_to_end);
}

int bench_serve(BenchServeOptions options) {
  ServeLoad& load = options.load;
  load.request_rate = parse_request_rate(options.request_rate);
  if (load.base_url.empty()) load.base_url = fmt::format("http://{}:{}", options.host, options.port);
  if (load.model.empty()) load.model = first_model(load.base_url, load.timeout_seconds);
  const ServeLoadResult result = run_serve_load(load);
  if (result.num_completed > 0) print_result(load, result);
  if (!options.json_file.empty()) write_json_file(options.json_file, to_json(load, result));
  if (result.errors.empty()) return 0;
  throw Error(ErrorCode::Unavailable, fmt::format("{} of {} requests failed; the first: {}", result.errors.size(),
                                                  load.num_prompts, result.errors.front()));
}

void add_load_flags(CLI::App& command, ServeLoad& load) {
  command.add_option("--num-prompts", load.num_prompts, "requests in all")->check(at_least(1))->capture_default_str();
  command.add_option("--random-input-len,--input-len", load.input_len, "tokens of a prompt")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--random-output-len,--output-len", load.output_len, "tokens of an answer")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--vocab-size", load.vocab_size, "prompts are token ids below it")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--max-concurrency", load.max_concurrency, "requests at once; default: as many as have arrived")
      ->check(at_least(1));
  command.add_option("--seed", load.seed, "of prompts and arrivals")->capture_default_str();
  command.add_option("--timeout", load.timeout_seconds, "seconds without a byte until a request has failed")
      ->check(at_least(1))
      ->capture_default_str();
}

}  // namespace

std::function<int()> add_bench_serve(CLI::App& command) {
  auto options = std::make_shared<BenchServeOptions>();
  command.add_option("--base-url", options->load.base_url, "http://HOST:PORT; default: from --host and --port");
  command.add_option("--host", options->host, "of the server")->capture_default_str();
  command.add_option("--port", options->port, "of the server")->check(between(1, 65535))->capture_default_str();
  command.add_option("--model", options->load.model, "its name there; default: the first that the server names");
  add_load_flags(command, options->load);
  command
      .add_option("--request-rate", options->request_rate,
                  "requests a second, at random times (a Poisson process); inf: all at the start")
      ->capture_default_str();
  command.add_option("--json,--output-json", options->json_file, "write the result there too")->type_name("FILE");
  return [options] { return bench_serve(*options); };
}

}  // namespace nibble::apps
