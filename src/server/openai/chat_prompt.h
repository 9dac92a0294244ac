#pragma once

#include <string>

#include "core/json.h"
#include "server/openai/serving.h"

namespace nibble::server::openai {

/// A conversation as the model's template renders it.
struct ChatPrompt {
  std::string text;
  bool add_special_tokens = false;  // templates write BOS themselves
  bool continues_final_message = false;
  std::string last_role;
  std::string last_content;
};

/// Renders "messages" (with tools, documents, chat_template_kwargs, add_generation_prompt, continue_final_message).
/// Text of a message that spells a special token becomes that token when it is tokenized, as in vLLM: templates and
/// their messages are one text by then. Errors: RequestError; whatever the template raises (400).
ChatPrompt render_chat(const Json& body, const Serving& serving);

}  // namespace nibble::server::openai
