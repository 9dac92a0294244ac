#include "server/openai/chat_prompt.h"

#include <string_view>
#include <utility>

#include "server/openai/chat_messages.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/openai/sampling.h"

namespace nibble::server::openai {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\v\f";
  const auto begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

/// Cuts what the template wrote behind the last message, so that the model goes on with it.
void reopen_final_message(ChatPrompt& prompt) {
  const std::string_view content = trimmed(prompt.last_content);
  const auto found = prompt.text.rfind(content);
  if (content.empty() || found == std::string::npos) {
    throw bad_request("continue_final_message: the template does not render the final message as it is.",
                      "continue_final_message");
  }
  prompt.text.resize(found + content.size());
}

}  // namespace

ChatPrompt render_chat(const Json& body, const Serving& serving) {
  if (is_set(body, "chat_template")) {
    throw bad_request("chat_template: templates of requests are not accepted; see --chat-template.", "chat_template");
  }
  const Json messages = normalize_messages(body);
  std::size_t num_bytes = 0;
  for (const Json& message : messages) num_bytes += message["content"].get_ref<const std::string&>().size();
  check_prompt_bytes(serving, num_bytes);
  ChatPrompt prompt;
  prompt.add_special_tokens = field_or<bool>(body, "add_special_tokens", false);
  prompt.continues_final_message = field_or<bool>(body, "continue_final_message", false);
  prompt.last_role = messages.back()["role"].get<std::string>();
  prompt.last_content = messages.back()["content"].get<std::string>();

  tokenizer::ChatTemplate::Options options;
  options.add_generation_prompt = field_or<bool>(body, "add_generation_prompt", true);
  if (options.add_generation_prompt && prompt.continues_final_message) {
    throw bad_request("Cannot set both continue_final_message and add_generation_prompt to true.",
                      "continue_final_message");
  }
  options.tools = checked_tools(body);
  options.extra_kwargs = checked_template_kwargs(body);
  if (const auto documents = body.find("documents"); documents != body.end() && !documents->is_null()) {
    if (!documents->is_array()) throw malformed("documents: expected an array.", "documents");
    options.documents = *documents;
  }
  options.bos_token = serving.tokenizer().bos_token();
  options.eos_token = serving.tokenizer().eos_token();
  prompt.text = serving.chat_template->render(messages, options);
  if (prompt.continues_final_message) reopen_final_message(prompt);
  return prompt;
}

}  // namespace nibble::server::openai
