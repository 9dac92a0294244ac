#include "server/openai/sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <limits>
#include <string>
#include <vector>

#include "server/openai/errors.h"
#include "server/openai/fields.h"

namespace nibble::server::openai {
namespace {

constexpr std::int64_t kMaxNumChoices = 16'384;  // VLLM_MAX_N_SEQUENCES
/// Every token's text is searched for every stop string: bounds the engine thread's work.
constexpr std::size_t kMaxStopStrings = 256;
constexpr std::size_t kMaxStopBytes = 16 * 1024;
/// vLLM's limits: below the first sampling is greedy, below the second it is raised to it.
constexpr double kGreedyTemperature = 1e-5;
constexpr double kMinTemperature = 1e-2;
/// Logits are divided and multiplied by it: beyond these they would overflow, and the request end as an internal error.
constexpr double kMinRepetitionPenalty = 1e-6;
constexpr double kMaxRepetitionPenalty = 1e6;

/// Fields of the API, or of vLLM, that change what is generated and that nibble cannot honour yet: a clear refusal
/// instead of another answer than the one asked for.
constexpr const char* kUnsupported[] = {
    "suffix",
    "use_beam_search",
    "allowed_token_ids",
    "bad_words",
    "logprob_token_ids",
    "prompt_embeds",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "cache_salt",
    "logits_processors",
    "repetition_detection",
    "thinking_token_budget",
};

void refuse_unsupported(const Json& body) {
  for (const char* key : kUnsupported) {
    if (is_set(body, key)) throw bad_request(fmt::format("{} is not supported.", key), key);
  }
  if (const auto format = body.find("response_format"); format != body.end() && !format->is_null()) {
    const auto type = field<std::string>(*format, "type");
    if (!type) throw malformed("response_format: an object with a type is required.", "response_format");
    if (*type != "text") {
      throw bad_request(fmt::format("response_format {} is not supported; only text is.", excerpt(*type)),
                        "response_format");
    }
  }
}

std::vector<std::string> parse_stop(const Json& body) {
  std::vector<std::string> stop;
  const auto found = body.find("stop");
  if (found == body.end() || found->is_null()) return stop;
  if (found->is_string()) {
    stop.push_back(found->get<std::string>());
  } else {
    stop = field_or<std::vector<std::string>>(body, "stop", {});
  }
  std::size_t num_bytes = 0;
  for (const std::string& text : stop) {
    if (text.empty()) throw bad_request("stop cannot contain an empty string.", "stop");
    num_bytes += text.size();
  }
  if (stop.size() > kMaxStopStrings || num_bytes > kMaxStopBytes) {
    throw bad_request(
        fmt::format("stop: at most {} strings of together {} bytes are accepted.", kMaxStopStrings, kMaxStopBytes),
        "stop");
  }
  return stop;
}

std::vector<std::int32_t> parse_stop_token_ids(const Json& body, std::int64_t vocab_size) {
  const auto found = body.find("stop_token_ids");
  if (found == body.end() || found->is_null()) return {};
  if (!found->is_array()) throw malformed("stop_token_ids: expected an array of integers.", "stop_token_ids");
  if (found->size() > kMaxStopStrings) {
    throw bad_request(fmt::format("stop_token_ids: at most {} are accepted.", kMaxStopStrings), "stop_token_ids");
  }
  return token_ids(*found, "stop_token_ids", vocab_size);
}

std::optional<std::int32_t> parse_token_key(const std::string& key, std::int64_t vocab_size) {
  std::int64_t id = 0;
  const auto [end, status] = std::from_chars(key.data(), key.data() + key.size(), id);
  if (status != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_size) return std::nullopt;
  return static_cast<std::int32_t>(id);
}

std::vector<std::pair<std::int32_t, float>> parse_logit_bias(const Json& body, std::int64_t vocab_size) {
  std::vector<std::pair<std::int32_t, float>> bias;
  const auto found = body.find("logit_bias");
  if (found == body.end() || found->is_null()) return bias;
  if (!found->is_object()) throw malformed("logit_bias: expected an object of token ids and numbers.", "logit_bias");
  std::string bad_keys;
  for (const auto& [key, value] : found->items()) {
    const auto id = parse_token_key(key, vocab_size);
    if (!id) {
      bad_keys += (bad_keys.empty() ? "" : ", ") + excerpt(key, 40);
      continue;
    }
    if (!value.is_number()) throw malformed(fmt::format("logit_bias[{}]: expected a number.", key), "logit_bias");
    bias.emplace_back(*id, static_cast<float>(std::clamp(value.get<double>(), -100.0, 100.0)));
  }
  if (!bad_keys.empty()) {
    throw bad_request(fmt::format("logit_bias: {} {} no token ids of the model's vocabulary (size {}).", bad_keys,
                                  bad_keys.find(',') == std::string::npos ? "is" : "are", vocab_size),
                      "logit_bias");
  }
  return bias;
}

float parse_temperature(const Json& body, double fallback) {
  const double temperature = number_in(body, "temperature", 0, FLT_MAX).value_or(fallback);
  if (temperature < kGreedyTemperature) return 0;
  return static_cast<float>(std::max(temperature, kMinTemperature));
}

float parse_top_p(const Json& body, double fallback) {
  const double top_p = field<double>(body, "top_p").value_or(fallback);
  if (!(top_p > 0 && top_p <= 1)) throw bad_request(fmt::format("top_p must be in (0, 1], got {}.", top_p), "top_p");
  return static_cast<float>(top_p);
}

std::int32_t parse_top_k(const Json& body, std::int64_t fallback) {
  const std::int64_t top_k = field<std::int64_t>(body, "top_k").value_or(fallback);
  if (top_k < -1) throw bad_request(fmt::format("top_k must be -1 or 0 (off) or positive, got {}.", top_k), "top_k");
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(top_k, 0, INT32_MAX));
}

float parse_repetition_penalty(const Json& body, double fallback) {
  const double penalty = field<double>(body, "repetition_penalty").value_or(fallback);
  if (!(penalty >= kMinRepetitionPenalty && penalty <= kMaxRepetitionPenalty)) {
    throw bad_request(fmt::format("repetition_penalty must be in [{}, {}], got {}.", kMinRepetitionPenalty,
                                  kMaxRepetitionPenalty, penalty),
                      "repetition_penalty");
  }
  return static_cast<float>(penalty);
}

}  // namespace

engine::SamplingParams parse_sampling(const Json& body, const Serving& serving) {
  refuse_unsupported(body);
  const SamplingDefaults& defaults = serving.defaults;
  engine::SamplingParams params;
  params.temperature = parse_temperature(body, defaults.temperature);
  params.top_p = parse_top_p(body, defaults.top_p);
  params.top_k = parse_top_k(body, defaults.top_k);
  params.min_p = static_cast<float>(number_in(body, "min_p", 0, 1).value_or(defaults.min_p));
  params.repetition_penalty = parse_repetition_penalty(body, defaults.repetition_penalty);
  params.presence_penalty = static_cast<float>(number_in(body, "presence_penalty", -2, 2).value_or(0));
  params.frequency_penalty = static_cast<float>(number_in(body, "frequency_penalty", -2, 2).value_or(0));
  if (const auto seed = field<std::int64_t>(body, "seed")) params.seed = static_cast<std::uint64_t>(*seed);
  params.min_tokens = integer_in(body, "min_tokens", 0, INT64_MAX).value_or(0);
  params.stop = parse_stop(body);
  params.stop_token_ids = parse_stop_token_ids(body, serving.vocab_size());
  params.include_stop_str_in_output = field_or<bool>(body, "include_stop_str_in_output", false);
  params.ignore_eos = field_or<bool>(body, "ignore_eos", false);
  params.skip_special_tokens = field_or<bool>(body, "skip_special_tokens", true);
  params.logit_bias = parse_logit_bias(body, serving.vocab_size());
  return params;
}

std::int64_t parse_num_choices(const Json& body) {
  return integer_in(body, "n", 1, kMaxNumChoices).value_or(1);
}

std::int64_t resolve_max_tokens(const Serving& serving, std::int64_t num_prompt_tokens,
                                std::optional<std::int64_t> requested, std::optional<std::int64_t> otherwise) {
  const std::int64_t context = serving.engine.max_model_len();
  const std::int64_t num_left = context - num_prompt_tokens;
  if (num_left < requested.value_or(1)) {
    const std::int64_t num_wanted = requested.value_or(1);
    const std::string wanted =
        fmt::format("{}{} tokens ({} in the prompt, {} for the completion)", requested ? "" : "at least ",
                    num_prompt_tokens + num_wanted, num_prompt_tokens, num_wanted);
    throw bad_request(fmt::format("This model's maximum context length is {} tokens. However, you requested {}. Please "
                                  "reduce the length of the prompt or of the completion.",
                                  context, wanted),
                      "input_tokens");
  }
  const std::int64_t max_tokens = requested.value_or(std::min(num_left, otherwise.value_or(num_left)));
  return std::min(max_tokens, serving.defaults.max_new_tokens.value_or(max_tokens));
}

void check_min_tokens(const engine::SamplingParams& params) {
  if (params.min_tokens <= params.max_tokens) return;
  throw bad_request(fmt::format("min_tokens must be less than or equal to max_tokens={}, got {}.", params.max_tokens,
                                params.min_tokens),
                    "min_tokens");
}

void check_prompt_bytes(const Serving& serving, std::size_t num_bytes) {
  if (static_cast<std::int64_t>(num_bytes) <= serving.max_prompt_bytes) return;
  throw bad_request(fmt::format("This model's maximum context length is {} tokens. However, you requested a prompt of "
                                "{} bytes, which is more than that many tokens can spell. Please reduce the length of "
                                "the prompt.",
                                serving.engine.max_model_len(), num_bytes),
                    "input_tokens");
}

StreamOptions parse_stream_options(const Json& body, const Serving& serving) {
  StreamOptions parsed;
  parsed.stream = field_or<bool>(body, "stream", false);
  const auto options = body.find("stream_options");
  if (options != body.end() && !options->is_null()) {
    if (!parsed.stream) {
      throw bad_request("stream_options can only be set when stream is true.", "stream_options");
    }
    if (!options->is_object()) throw malformed("stream_options: expected an object.", "stream_options");
    parsed.include_usage = field<bool>(*options, "include_usage").value_or(!options->empty());
    parsed.continuous_usage = parsed.include_usage && field_or<bool>(*options, "continuous_usage_stats", false);
  }
  parsed.include_usage |= parsed.stream && serving.options.enable_force_include_usage;
  return parsed;
}

std::int32_t checked_num_logprobs(std::int64_t num_logprobs, const char* key, const Serving& serving) {
  const std::int64_t cap = serving.options.max_logprobs < 0 ? serving.vocab_size() : serving.options.max_logprobs;
  if (num_logprobs < 0 || num_logprobs > cap) {
    throw bad_request(fmt::format("{} must be in [0, {}] (--max-logprobs), got {}.", key, cap, num_logprobs), key);
  }
  return static_cast<std::int32_t>(num_logprobs);
}

}  // namespace nibble::server::openai
