#include "server/openai/unknown_fields.h"

#include <algorithm>
#include <string_view>

#include "core/log.h"
#include "server/openai/fields.h"

namespace nibble::server::openai {
namespace {

/// Every field that a generation endpoint reads, if only to refuse it.
constexpr std::string_view kKnownFields[] = {
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "frequency_penalty",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logits_processors",
    "logprob_token_ids",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_p",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "prompt_embeds",
    "prompt_logprobs",
    "reasoning_effort",
    "repetition_detection",
    "repetition_penalty",
    "request_id",
    "response_format",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "structured_outputs",
    "suffix",
    "temperature",
    "thinking_token_budget",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_beam_search",
};
static_assert(std::ranges::is_sorted(kKnownFields));

}  // namespace

void UnknownFields::report(const Json& body) {
  for (const auto& [key, value] : body.items()) {
    if (std::ranges::binary_search(kKnownFields, std::string_view(key))) continue;
    std::string name = excerpt(key, 64);
    const std::lock_guard lock(mutex_);
    if (names_.size() >= kMaxNames || names_.contains(name)) continue;
    log::debug("the request field {} is not known and is ignored (said once)", name);
    names_.insert(std::move(name));
  }
}

std::vector<std::string> UnknownFields::names() const {
  const std::lock_guard lock(mutex_);
  return {names_.begin(), names_.end()};
}

}  // namespace nibble::server::openai
