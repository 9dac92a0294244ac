#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/json.h"

namespace nibble::tokenizer {

/// A compiled chat template: messages → prompt text, byte for byte as transformers' sandboxed jinja2 environment
/// renders it. Limits on steps, depth and output keep a hostile template from harm. Immutable, thread-safe.
class ChatTemplate {
 public:
  struct Options {
    bool add_generation_prompt = true;
    Json tools;         // array or null
    Json documents;     // array or null
    Json extra_kwargs;  // chat_template_kwargs: object or null; cannot override messages
    std::string bos_token;
    std::string eos_token;
  };

  /// `name` is for messages ("tokenizer_config.json: chat_template"). Errors: InvalidArgument with line and reason.
  static std::unique_ptr<ChatTemplate> compile(std::string_view source, std::string_view name);
  virtual ~ChatTemplate() = default;

  /// `messages`: array of {"role", "content", …} as the request holds them.
  /// Errors: InvalidArgument for raise_exception and for whatever the template cannot do with these messages, or
  /// limits.
  virtual std::string render(const Json& messages, const Options& options) const = 0;
};

/// Which template a model gets, and why (logged once at start where it is not the checkpoint's own).
struct ChatTemplateChoice {
  std::unique_ptr<ChatTemplate> chat_template;
  std::string origin;  // "tokenizer_config.json", "--chat-template FILE", "Llama-2 family", "plain turns"
  bool is_fallback = false;
};

/// In order: `override_source` where not empty (--chat-template), chat_template.jinja, tokenizer_config.json's
/// chat_template (a string, or a list whose "default" entry counts), the family's (ChatML where the vocabulary has
/// <|im_start|>, Llama-2 [INST], Mistral), plain "User: … Assistant:" turns.
/// Errors: InvalidArgument where the template that counts does not compile.
ChatTemplateChoice choose_chat_template(std::string_view override_source, std::string_view chat_template_jinja,
                                        const Json& tokenizer_config, std::string_view model_type,
                                        std::string_view model_name, bool vocabulary_has_im_start);

}  // namespace nibble::tokenizer
