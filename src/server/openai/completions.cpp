// POST /v1/completions
#include <fmt/format.h>

#include <utility>

#include "server/openai/endpoints.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/openai/logprobs.h"

namespace nibble::server::openai {
namespace {

constexpr std::size_t kMaxSequences = 16'384;
constexpr const char* kEmptyPrompt = "Either prompt or prompt_embeds must be provided and non-empty.";

struct CompletionFields {
  bool echo = false;
  std::int32_t num_logprobs = -1;
  TokenNames names = TokenNames::Text;
  bool return_token_ids = false;
  bool is_score_only = false;
};

class CompletionFormat final : public AnswerFormat {
 public:
  CompletionFormat(const tokenizer::Tokenizer& tokenizer, CompletionFields fields)
      : tokenizer_(tokenizer), fields_(fields) {}

  const char* object_name() const override { return "text_completion"; }
  const char* chunk_name() const override { return "text_completion"; }

  Json finished_choice(const Choice& choice) const override {
    std::string text = fields_.echo ? choice.prompt->text : std::string();
    if (!fields_.is_score_only) text += choice.text;
    Json logprobs;
    if (fields_.num_logprobs >= 0) {
      std::int64_t offset = 0;
      logprobs = logprobs_json(scored_tokens(choice, choice.prompt_logprobs, choice.logprobs), offset);
    }
    Json entry = entry_json(choice, std::move(text), std::move(logprobs));
    if (fields_.return_token_ids) {
      entry["token_ids"] = choice.tokens;
      entry["prompt_token_ids"] = choice.prompt->tokens;
    }
    return entry;
  }

  std::vector<Json> stream_choices(Choice& choice, const engine::RequestOutput& output) const override {
    const bool is_first = !std::exchange(choice.has_started, true);
    std::string text = is_first && fields_.echo ? choice.prompt->text : std::string();
    if (!fields_.is_score_only) text += output.text;
    std::vector<ScoredToken> scored;
    if (fields_.num_logprobs >= 0) scored = scored_tokens(choice, output.prompt_logprobs, output.logprobs);
    if (text.empty() && scored.empty() && output.finish_reason == engine::FinishReason::None) {
      choice.has_started = !is_first;
      return {};
    }
    Json logprobs;
    if (fields_.num_logprobs >= 0) logprobs = logprobs_json(scored, choice.text_offset);
    Json entry = entry_json(choice, std::move(text), std::move(logprobs));
    if (fields_.return_token_ids) {
      entry["token_ids"] = output.tokens;
      entry["prompt_token_ids"] = is_first ? Json(choice.prompt->tokens) : Json();
    }
    return {std::move(entry)};
  }

 private:
  std::vector<ScoredToken> scored_tokens(const Choice& choice,
                                         const std::vector<std::optional<engine::TokenLogprob>>& prompt_logprobs,
                                         const std::vector<engine::TokenLogprob>& logprobs) const {
    std::vector<ScoredToken> scored;
    if (fields_.echo) {
      for (std::size_t i = 0; i < prompt_logprobs.size(); ++i) {
        scored.push_back({choice.prompt->tokens[i], prompt_logprobs[i]});
      }
    }
    if (fields_.is_score_only) return scored;
    for (const engine::TokenLogprob& logprob : logprobs) scored.push_back({logprob.token, logprob});
    return scored;
  }

  Json logprobs_json(const std::vector<ScoredToken>& scored, std::int64_t& offset) const {
    return completion_logprobs(tokenizer_, scored, fields_.num_logprobs, fields_.names, offset);
  }

  static Json entry_json(const Choice& choice, std::string text, Json logprobs) {
    return {{"index", choice.index},
            {"text", std::move(text)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", finish_reason_json(choice.finish_reason)},
            {"stop_reason", choice.stop_reason}};
  }

  const tokenizer::Tokenizer& tokenizer_;
  CompletionFields fields_;
};

/// truncate_prompt_tokens: how many tokens of each prompt count.
struct Truncation {
  std::int64_t num_tokens = 0;  // 0: all
  bool keeps_start = false;
};

Truncation parse_truncation(const Json& body, const Serving& serving) {
  Truncation truncation;
  const auto num_tokens = integer_in(body, "truncate_prompt_tokens", -1, INT64_MAX);
  if (!num_tokens) return truncation;
  if (*num_tokens == 0) throw bad_request("truncate_prompt_tokens must be positive, or -1.", "truncate_prompt_tokens");
  truncation.num_tokens = *num_tokens == -1 ? serving.engine.max_model_len() - 1 : *num_tokens;
  const std::string side = field_or<std::string>(body, "truncation_side", "left");
  if (side != "left" && side != "right") throw malformed("truncation_side must be left or right.", "truncation_side");
  truncation.keeps_start = side == "right";  // it names the side that is cut
  return truncation;
}

void truncate(std::vector<std::int32_t>& tokens, const Truncation& truncation) {
  const auto num_kept = static_cast<std::size_t>(truncation.num_tokens);
  if (num_kept == 0 || tokens.size() <= num_kept) return;
  if (truncation.keeps_start) {
    tokens.resize(num_kept);
  } else {
    tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(num_kept));
  }
}

class PromptReader {
 public:
  PromptReader(const Json& body, const Serving& serving, bool echo)
      : serving_(serving),
        echo_(echo),
        add_special_tokens_(field_or<bool>(body, "add_special_tokens", true)),
        truncation_(parse_truncation(body, serving)) {}

  /// A string, an array of token ids, or an array of strings and arrays of token ids.
  std::vector<Prompt> read(const Json& body, std::size_t num_choices) const {
    const auto found = body.find("prompt");
    if (found == body.end() || found->is_null() || found->empty()) throw bad_request(kEmptyPrompt, "prompt");
    std::vector<Prompt> prompts;
    const bool is_single = found->is_string() || (found->is_array() && found->front().is_number());
    if (is_single) {
      prompts.push_back(read_one(*found));
      return prompts;
    }
    if (!found->is_array()) throw malformed("prompt: expected text, token ids, or an array of them.", "prompt");
    if (found->size() * num_choices > kMaxSequences) {
      throw bad_request(fmt::format("prompt: at most {} sequences a request, got {} prompts times n {}.", kMaxSequences,
                                    found->size(), num_choices),
                        "prompt");
    }
    for (const Json& element : *found) prompts.push_back(read_one(element));
    return prompts;
  }

 private:
  Prompt read_one(const Json& json) const {
    Prompt prompt;
    if (json.is_string()) {
      const auto& text = json.get_ref<const std::string&>();
      if (truncation_.num_tokens == 0) check_prompt_bytes(serving_, text.size());
      if (!text.empty()) prompt.tokens = serving_.tokenizer().encode(text, add_special_tokens_);
    } else if (json.is_array()) {
      prompt.tokens = token_ids(json, "prompt", serving_.vocab_size());
    } else {
      throw malformed("prompt: expected text, token ids, or an array of them.", "prompt");
    }
    truncate(prompt.tokens, truncation_);
    if (prompt.tokens.empty()) throw bad_request(kEmptyPrompt, "prompt");
    if (echo_) {
      prompt.text = json.is_string() && truncation_.num_tokens == 0
                        ? json.get<std::string>()
                        : serving_.tokenizer().decode(prompt.tokens, /*skip_special_tokens=*/false);
    }
    return prompt;
  }

  const Serving& serving_;
  bool echo_;
  bool add_special_tokens_;
  Truncation truncation_;
};

}  // namespace

GenerationRequest parse_completion(const Json& body, const Serving& serving) {
  CompletionFields fields;
  fields.echo = field_or<bool>(body, "echo", false);
  fields.return_token_ids = field_or<bool>(body, "return_token_ids", false);
  if (field_or<bool>(body, "return_tokens_as_token_ids", false)) fields.names = TokenNames::Ids;
  if (const auto num_logprobs = field<std::int64_t>(body, "logprobs")) {
    fields.num_logprobs = checked_num_logprobs(*num_logprobs, "logprobs", serving);
  }
  if (field<std::int64_t>(body, "prompt_logprobs")) {
    throw bad_request("prompt_logprobs is not supported; use echo with logprobs.", "prompt_logprobs");
  }
  GenerationRequest request;
  request.stream = parse_stream_options(body, serving);
  request.num_choices = parse_num_choices(body);
  engine::SamplingParams params = parse_sampling(body, serving);
  params.num_logprobs = fields.num_logprobs;
  if (fields.echo) params.num_prompt_logprobs = fields.num_logprobs;

  std::optional<std::int64_t> max_tokens = integer_in(body, "max_tokens", fields.echo ? 0 : 1, INT64_MAX / 2);
  fields.is_score_only = max_tokens == 0;
  if (fields.is_score_only) max_tokens = 1;  // one step scores the prompt; its token is dropped
  request.is_score_only = fields.is_score_only;
  request.prompts = PromptReader(body, serving, fields.echo).read(body, static_cast<std::size_t>(request.num_choices));
  for (Prompt& prompt : request.prompts) {
    prompt.params = params;
    const auto num_prompt_tokens = static_cast<std::int64_t>(prompt.tokens.size());
    prompt.params.max_tokens = resolve_max_tokens(serving, num_prompt_tokens, max_tokens, 16);
    check_min_tokens(prompt.params);
  }
  request.format = std::make_unique<CompletionFormat>(serving.tokenizer(), fields);
  return request;
}

void serve_completions(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_body(exchange->request());
  check_model(body, serving);
  serving.unknown_fields.report(body);
  GenerationRequest request = parse_completion(body, serving);
  request.id = make_request_id("cmpl-", exchange->request(), body);
  generate(serving, exchange, std::move(request));
}

}  // namespace nibble::server::openai
