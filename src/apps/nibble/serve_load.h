#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::apps {

/// Load on a server of completions: prompts of random tokens, each answered with exactly output_len tokens.
struct ServeLoad {
  std::string base_url;
  std::string model;
  std::int64_t num_prompts = 100;
  std::int64_t input_len = 512;
  std::int64_t output_len = 128;
  std::int64_t vocab_size = 256;     // token ids below it
  std::int64_t max_concurrency = 0;  // requests at once; 0: all that have arrived
  double request_rate = 0;           // arrivals a second, a Poisson process; 0: all at the start
  std::uint64_t seed = 0;
  std::int64_t timeout_seconds = 600;  // of silence
};

/// Milliseconds.
struct LatencyStatistics {
  double mean = 0;
  double median = 0;
  double p99 = 0;
};

struct ServeLoadResult {
  std::int64_t num_completed = 0;
  std::vector<std::string> errors;  // one a request that failed
  std::int64_t num_input_tokens = 0;
  std::int64_t num_output_tokens = 0;
  double duration_seconds = 0;   // from the first request to the end of the last
  LatencyStatistics ttft;        // sent → first chunk
  LatencyStatistics tpot;        // of a request: first chunk → last, by tokens after the first
  LatencyStatistics itl;         // between tokens; those of one chunk share the time since the last
  LatencyStatistics end_to_end;  // sent → last chunk
};

/// Runs all requests to their end, a thread for each that runs at once. Errors: InvalidArgument for the address.
ServeLoadResult run_serve_load(const ServeLoad& load);

/// The first model that the server names. Errors: Unavailable where it does not answer.
std::string first_model(const std::string& base_url, std::int64_t timeout_seconds);

}  // namespace nibble::apps
