// POST /v1/chat/completions
#include <fmt/format.h>

#include <utility>

#include "server/openai/chat_messages.h"
#include "server/openai/chat_prompt.h"
#include "server/openai/endpoints.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/openai/logprobs.h"

namespace nibble::server::openai {
namespace {

struct ChatFields {
  std::string role = "assistant";
  std::string echoed;  // the last message's text, where echo asks for it
  bool has_logprobs = false;
  std::int32_t num_top_logprobs = 0;
  TokenNames names = TokenNames::Text;
  bool return_token_ids = false;
};

class ChatFormat final : public AnswerFormat {
 public:
  ChatFormat(const tokenizer::Tokenizer& tokenizer, ChatFields fields)
      : tokenizer_(tokenizer), fields_(std::move(fields)) {}

  const char* object_name() const override { return "chat.completion"; }
  const char* chunk_name() const override { return "chat.completion.chunk"; }

  Json finished_choice(const Choice& choice) const override {
    Json message = {{"role", fields_.role},
                    {"content", fields_.echoed + choice.text},
                    {"refusal", nullptr},
                    {"reasoning", nullptr}};
    Json entry = {{"index", choice.index},
                  {"message", std::move(message)},
                  {"logprobs", logprobs_json(choice.logprobs)},
                  {"finish_reason", finish_reason_json(choice.finish_reason)},
                  {"stop_reason", choice.stop_reason}};
    if (fields_.return_token_ids) entry["token_ids"] = choice.tokens;
    return entry;
  }

  std::vector<Json> stream_choices(Choice& choice, const engine::RequestOutput& output) const override {
    std::vector<Json> entries;
    if (!std::exchange(choice.has_started, true)) {
      entries.push_back(opening_entry(choice, {{"role", fields_.role}, {"content", ""}}));
      if (!fields_.echoed.empty()) entries.push_back(opening_entry(choice, {{"content", fields_.echoed}}));
    }
    const bool is_last = output.finish_reason != engine::FinishReason::None;
    if (output.text.empty() && output.logprobs.empty() && !is_last) return entries;
    Json entry = {{"index", choice.index},
                  {"delta", {{"content", output.text}}},
                  {"logprobs", logprobs_json(output.logprobs)},
                  {"finish_reason", finish_reason_json(output.finish_reason)}};
    if (is_last) entry["stop_reason"] = choice.stop_reason;
    if (fields_.return_token_ids) entry["token_ids"] = output.tokens;
    entries.push_back(std::move(entry));
    return entries;
  }

 private:
  static Json opening_entry(const Choice& choice, Json delta) {
    return {{"index", choice.index}, {"delta", std::move(delta)}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  }

  Json logprobs_json(const std::vector<engine::TokenLogprob>& logprobs) const {
    if (!fields_.has_logprobs) return nullptr;
    return chat_logprobs(tokenizer_, logprobs, fields_.num_top_logprobs, fields_.names);
  }

  const tokenizer::Tokenizer& tokenizer_;
  ChatFields fields_;
};

ChatFields parse_chat_fields(const Json& body, const Serving& serving, const ChatPrompt& prompt) {
  ChatFields fields;
  fields.has_logprobs = field_or<bool>(body, "logprobs", false);
  const auto num_top = field<std::int64_t>(body, "top_logprobs").value_or(0);
  fields.num_top_logprobs = checked_num_logprobs(num_top, "top_logprobs", serving);
  if (num_top > 0 && !fields.has_logprobs) {
    throw bad_request("when using top_logprobs, logprobs must be set to true.", "top_logprobs");
  }
  if (field_or<bool>(body, "return_tokens_as_token_ids", false)) fields.names = TokenNames::Ids;
  fields.return_token_ids = field_or<bool>(body, "return_token_ids", false);
  fields.role = prompt.continues_final_message ? prompt.last_role : serving.options.response_role;
  if (field_or<bool>(body, "echo", false) && prompt.last_role == fields.role) fields.echoed = prompt.last_content;
  return fields;
}

}  // namespace

GenerationRequest parse_chat_completion(const Json& body, const Serving& serving) {
  if (field<std::int64_t>(body, "prompt_logprobs")) {
    throw bad_request("prompt_logprobs is not supported for chat.", "prompt_logprobs");
  }
  GenerationRequest request;
  request.stream = parse_stream_options(body, serving);
  request.num_choices = parse_num_choices(body);
  Prompt prompt;
  prompt.params = parse_sampling(body, serving);
  auto max_tokens = integer_in(body, "max_completion_tokens", 1, INT64_MAX / 2);
  if (!max_tokens) max_tokens = integer_in(body, "max_tokens", 1, INT64_MAX / 2);

  const ChatPrompt rendered = render_chat(body, serving);
  check_prompt_bytes(serving, rendered.text.size());
  ChatFields fields = parse_chat_fields(body, serving, rendered);
  prompt.tokens = serving.tokenizer().encode(rendered.text, rendered.add_special_tokens);
  if (prompt.tokens.empty()) throw bad_request("The chat template renders these messages as nothing.", "messages");
  if (fields.has_logprobs) prompt.params.num_logprobs = fields.num_top_logprobs;
  prompt.params.max_tokens =
      resolve_max_tokens(serving, static_cast<std::int64_t>(prompt.tokens.size()), max_tokens, std::nullopt);
  check_min_tokens(prompt.params);
  request.prompts.push_back(std::move(prompt));
  request.format = std::make_unique<ChatFormat>(serving.tokenizer(), std::move(fields));
  return request;
}

void serve_chat_completions(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_body(exchange->request());
  check_model(body, serving);
  serving.unknown_fields.report(body);
  GenerationRequest request = parse_chat_completion(body, serving);
  request.id = make_request_id("chatcmpl-", exchange->request(), body);
  generate(serving, exchange, std::move(request));
}

}  // namespace nibble::server::openai
