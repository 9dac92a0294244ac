#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace nibble::engine {

/// Sampling parameters of one request, resolved (defaults of generation_config and API already applied).
struct SamplingParams {
  float temperature = 1;  // 0: greedy
  float top_p = 1;
  float min_p = 0;
  std::int32_t top_k = 0;  // 0: off
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::optional<std::uint64_t> seed;  // absent: a fresh one for each request
  std::int64_t max_tokens = 16;
  std::int64_t min_tokens = 0;
  std::vector<std::string> stop;             // strings
  std::vector<std::int32_t> stop_token_ids;  // besides EOS
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  std::int32_t num_logprobs = -1;         // -1: none
  std::int32_t num_prompt_logprobs = -1;  // -1: none; k: of every prompt token
  std::vector<std::pair<std::int32_t, float>> logit_bias;
};

enum class FinishReason : std::uint8_t { None, Stop, Length, Abort, Error };

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;
  std::vector<std::pair<std::int32_t, float>> top;  // best first
};

/// What a request produced since its last output. `finish_reason` is set in the last one.
struct RequestOutput {
  std::string text;  // complete characters only; held back while it may begin a stop string
  std::vector<std::int32_t> tokens;
  std::vector<TokenLogprob> logprobs;                        // one a token, where asked for
  std::vector<std::optional<TokenLogprob>> prompt_logprobs;  // in the first output; entry 0 is empty
  FinishReason finish_reason = FinishReason::None;
  std::string stop_string;                 // the string that stopped it
  std::optional<std::int32_t> stop_token;  // the stop token that did (not EOS)
  std::string error;                       // FinishReason::Error
  ErrorCode error_code = ErrorCode::Internal;
  std::int64_t num_prompt_tokens = 0;
  std::int64_t num_cached_tokens = 0;
  std::int64_t num_output_tokens = 0;  // so far
};

/// Called on the engine's thread: must be quick and must not call the engine back.
using OutputSink = std::function<void(RequestOutput)>;

struct Request {
  std::string id;  // unique while it runs
  std::vector<std::int32_t> prompt;
  SamplingParams params;
  OutputSink on_output;
};

}  // namespace nibble::engine
