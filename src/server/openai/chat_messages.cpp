#include "server/openai/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"

namespace nibble::server::openai {
namespace {

constexpr std::size_t kMaxTools = 1'024;

std::string text_of_part(const Json& part, std::size_t message_idx) {
  if (part.is_string()) return part.get<std::string>();
  const auto where = fmt::format("messages[{}].content", message_idx);
  if (!part.is_object()) throw malformed(fmt::format("{}: parts must be objects.", where), "messages");
  const auto type = field<std::string>(part, "type").value_or("text");
  const char* key = type == "refusal" ? "refusal" : "text";
  if (type != "text" && type != "input_text" && type != "output_text" && type != "refusal") {
    throw bad_request(fmt::format("{}: parts of type {} are not supported; only text is.", where, excerpt(type)),
                      "messages");
  }
  const auto text = field<std::string>(part, key);
  if (!text) throw malformed(fmt::format("{}: a part without {}.", where, key), "messages");
  return *text;
}

std::string text_of_content(const Json& message, std::size_t message_idx) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) return "";
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) {
    throw malformed(fmt::format("messages[{}].content: expected text or an array of parts.", message_idx), "messages");
  }
  std::string text;
  for (std::size_t i = 0; i < content->size(); ++i) {
    if (i != 0) text += '\n';
    text += text_of_part((*content)[i], message_idx);
  }
  return text;
}

/// The API holds arguments as JSON text; templates print objects.
void parse_tool_arguments(Json& message, std::size_t message_idx) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || calls->is_null()) return;
  const auto where = fmt::format("messages[{}].tool_calls", message_idx);
  if (!calls->is_array()) throw malformed(fmt::format("{}: expected an array.", where), "messages");
  for (Json& call : *calls) {
    const auto function = call.is_object() ? call.find("function") : call.end();
    if (!call.is_object() || function == call.end() || !function->is_object()) {
      throw malformed(fmt::format("{}: each call needs a function.", where), "messages");
    }
    const auto arguments = function->find("arguments");
    if (arguments == function->end() || !arguments->is_string()) continue;
    const auto text = arguments->get<std::string>();
    try {
      *arguments = text.empty() ? Json::object() : parse_json(text, where + ".function.arguments", {.max_depth = 64});
    } catch (const Error& error) {
      throw bad_request(error.what(), "messages");
    }
  }
}

void check_tool_choice(const Json& body, const Json& tools) {
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null()) return;
  if (choice->is_string()) {
    const auto& mode = choice->get_ref<const std::string&>();
    if (mode == "none") return;
    if (tools.is_null()) throw bad_request("When using tool_choice, tools must be set.", "tool_choice");
    if (mode == "auto") return;
    throw bad_request(fmt::format("tool_choice {} is not supported; auto and none are.", excerpt(mode)), "tool_choice");
  }
  if (!choice->is_object()) throw malformed("tool_choice: expected text or an object.", "tool_choice");
  if (tools.is_null()) throw bad_request("When using tool_choice, tools must be set.", "tool_choice");
  const auto function = choice->find("function");
  const auto name = function == choice->end() ? std::nullopt : field<std::string>(*function, "name");
  const bool is_known = name && std::ranges::any_of(tools, [&](const Json& tool) {
                          return tool["function"]["name"].get_ref<const std::string&>() == *name;
                        });
  if (!is_known) throw bad_request("tool_choice: names no function of tools.", "tool_choice");
  throw bad_request("tool_choice: forcing a function is not supported; auto and none are.", "tool_choice");
}

}  // namespace

Json normalize_messages(const Json& body) {
  const auto found = body.find("messages");
  if (found == body.end() || !found->is_array()) throw malformed("messages: an array is required.", "messages");
  if (found->empty()) throw bad_request("messages must not be empty.", "messages");
  Json messages = *found;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    Json& message = messages[i];
    if (!message.is_object()) throw malformed(fmt::format("messages[{}]: expected an object.", i), "messages");
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string()) {
      throw malformed(fmt::format("messages[{}].role: text is required.", i), "messages");
    }
    message["content"] = text_of_content(message, i);
    parse_tool_arguments(message, i);
  }
  return messages;
}

Json checked_tools(const Json& body) {
  const auto found = body.find("tools");
  Json tools;
  if (found != body.end() && !found->is_null()) {
    if (!found->is_array()) throw malformed("tools: expected an array.", "tools");
    if (found->empty()) throw bad_request("tools must not be an empty array; leave it out instead.", "tools");
    if (found->size() > kMaxTools)
      throw bad_request(fmt::format("tools: at most {} are accepted.", kMaxTools), "tools");
    for (const Json& tool : *found) {
      const auto function = tool.is_object() ? tool.find("function") : tool.end();
      if (!tool.is_object() || function == tool.end() || !function->is_object() ||
          !field<std::string>(*function, "name")) {
        throw malformed("tools: each needs a function with a name.", "tools");
      }
    }
    tools = *found;
  }
  check_tool_choice(body, tools);
  return tools;
}

Json checked_template_kwargs(const Json& body) {
  Json kwargs;
  if (const auto found = body.find("chat_template_kwargs"); found != body.end() && !found->is_null()) {
    if (!found->is_object()) throw malformed("chat_template_kwargs: expected an object.", "chat_template_kwargs");
    for (const char* key : {"messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
                            "continue_final_message", "bos_token", "eos_token"}) {
      if (found->contains(key)) {
        throw bad_request(fmt::format("chat_template_kwargs must not set {}.", key), "chat_template_kwargs");
      }
    }
    kwargs = *found;
  }
  if (const auto effort = field<std::string>(body, "reasoning_effort")) {
    if (kwargs.is_null()) kwargs = Json::object();
    if (!kwargs.contains("reasoning_effort")) kwargs["reasoning_effort"] = *effort;
  }
  return kwargs;
}

}  // namespace nibble::server::openai
