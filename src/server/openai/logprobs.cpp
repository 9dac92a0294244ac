#include "server/openai/logprobs.h"

#include <algorithm>
#include <cmath>

#include "tokenizer/utf8.h"

namespace nibble::server::openai {
namespace {

/// JSON has no infinity; vLLM's stand-in.
constexpr double kLowestLogprob = -9999.0;

double finite(float logprob) {
  return std::isfinite(logprob) ? static_cast<double>(logprob) : kLowestLogprob;
}

std::string token_name(const tokenizer::Tokenizer& tokenizer, std::int32_t token, TokenNames names) {
  if (names == TokenNames::Ids) return "token_id:" + std::to_string(token);
  return tokenizer::replace_invalid_utf8(tokenizer.token_bytes(token));
}

std::int64_t num_code_points(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

/// The token itself first, then the likeliest ones. Two tokens may read the same once repaired: the likelier stays.
Json top_entries(const tokenizer::Tokenizer& tokenizer, const engine::TokenLogprob& logprob, std::int32_t num_logprobs,
                 TokenNames names) {
  Json entries = Json::object();
  entries[token_name(tokenizer, logprob.token, names)] = finite(logprob.logprob);
  std::int32_t num_added = 0;
  for (const auto& [token, value] : logprob.top) {
    if (num_added++ == num_logprobs) break;
    entries.emplace(token_name(tokenizer, token, names), finite(value));
  }
  return entries;
}

Json chat_entry(const tokenizer::Tokenizer& tokenizer, std::int32_t token, float logprob, TokenNames names) {
  Json bytes = Json::array();
  for (const char c : tokenizer.token_bytes(token)) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", token_name(tokenizer, token, names)}, {"logprob", finite(logprob)}, {"bytes", std::move(bytes)}};
}

}  // namespace

Json completion_logprobs(const tokenizer::Tokenizer& tokenizer, std::span<const ScoredToken> tokens,
                         std::int32_t num_logprobs, TokenNames names, std::int64_t& first_offset) {
  Json offsets = Json::array();
  Json texts = Json::array();
  Json logprobs = Json::array();
  Json tops = Json::array();
  for (const ScoredToken& scored : tokens) {
    std::string text = token_name(tokenizer, scored.token, names);
    offsets.push_back(first_offset);
    first_offset += num_code_points(text);
    texts.push_back(std::move(text));
    logprobs.push_back(scored.logprob ? Json(finite(scored.logprob->logprob)) : Json());
    tops.push_back(scored.logprob ? top_entries(tokenizer, *scored.logprob, num_logprobs, names) : Json());
  }
  return {{"text_offset", std::move(offsets)},
          {"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)}};
}

Json chat_logprobs(const tokenizer::Tokenizer& tokenizer, std::span<const engine::TokenLogprob> tokens,
                   std::int32_t num_top, TokenNames names) {
  Json content = Json::array();
  for (const engine::TokenLogprob& logprob : tokens) {
    Json entry = chat_entry(tokenizer, logprob.token, logprob.logprob, names);
    Json top = Json::array();
    for (const auto& [token, value] : logprob.top) {
      if (static_cast<std::int32_t>(top.size()) == num_top) break;
      top.push_back(chat_entry(tokenizer, token, value, names));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

}  // namespace nibble::server::openai
