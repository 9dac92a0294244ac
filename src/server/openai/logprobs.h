#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"
#include "engine/request.h"
#include "tokenizer/tokenizer.h"

namespace nibble::server::openai {

enum class TokenNames : std::uint8_t {
  Text,  // the token's text; bytes that are no UTF-8 become U+FFFD
  Ids,   // "token_id:123" (return_tokens_as_token_ids)
};

/// One token with what the engine said about it; nothing for the first token of a prompt.
struct ScoredToken {
  std::int32_t token = 0;
  std::optional<engine::TokenLogprob> logprob;
};

/// Completions' logprobs object: {text_offset, tokens, token_logprobs, top_logprobs}. Each top entry holds the
/// `num_logprobs` likeliest tokens and the token itself. `text_offset` counts code points of token texts from
/// `first_offset`, which moves on.
Json completion_logprobs(const tokenizer::Tokenizer& tokenizer, std::span<const ScoredToken> tokens,
                         std::int32_t num_logprobs, TokenNames names, std::int64_t& first_offset);

/// Chat's logprobs object: {content: [{token, logprob, bytes, top_logprobs}]} with exactly `num_top` top entries.
Json chat_logprobs(const tokenizer::Tokenizer& tokenizer, std::span<const engine::TokenLogprob> tokens,
                   std::int32_t num_top, TokenNames names);

}  // namespace nibble::server::openai
