#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/json.h"
#include "engine/request.h"
#include "server/openai/serving.h"

namespace nibble::server::openai {

/// The sampling fields that both endpoints share, resolved over the model's and the API's defaults; max_tokens and
/// logprobs are the caller's. Errors: RequestError naming the field, also for what vLLM has and nibble does not serve
/// (guided decoding, bad_words, beam search, …).
engine::SamplingParams parse_sampling(const Json& body, const Serving& serving);

/// "n". Errors: RequestError.
std::int64_t parse_num_choices(const Json& body);

/// Tokens to generate at most: what the request asks for, else `otherwise`, else what the context has left; never more
/// than generation_config's max_new_tokens. Errors: RequestError where prompt and request exceed the context.
std::int64_t resolve_max_tokens(const Serving& serving, std::int64_t num_prompt_tokens,
                                std::optional<std::int64_t> requested, std::optional<std::int64_t> otherwise);

/// Errors: RequestError where min_tokens exceeds max_tokens.
void check_min_tokens(const engine::SamplingParams& params);

/// Refuses a text of so many bytes where it cannot fit the context, before it costs a template or tokenizing. Errors:
/// RequestError.
void check_prompt_bytes(const Serving& serving, std::size_t num_bytes);

struct StreamOptions {
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
};
/// "stream" and "stream_options". Errors: RequestError.
StreamOptions parse_stream_options(const Json& body, const Serving& serving);

/// Errors: RequestError for more than --max-logprobs or a negative number.
std::int32_t checked_num_logprobs(std::int64_t num_logprobs, const char* key, const Serving& serving);

}  // namespace nibble::server::openai
