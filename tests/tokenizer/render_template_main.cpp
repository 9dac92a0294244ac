// Renders chat templates for the oracle tests. One JSON object a line on stdin: {"template", "messages", "tools",
// "documents", "add_generation_prompt", "bos_token", "eos_token", "kwargs"}; a line {"text"} or {"error"} each on
// stdout.
#include <iostream>
#include <map>
#include <string>

#include "core/json.h"
#include "tokenizer/chat_template.h"

namespace {

using nibble::Json;
using nibble::tokenizer::ChatTemplate;

Json value_or_null(const Json& request, const char* key) {
  const auto found = request.find(key);
  return found == request.end() ? Json() : *found;
}

std::string render(const Json& request, std::map<std::string, std::unique_ptr<ChatTemplate>>& compiled) {
  const auto source = nibble::get<std::string>(request, "template");
  auto& chat_template = compiled[source];
  if (!chat_template) chat_template = ChatTemplate::compile(source, "template");
  ChatTemplate::Options options;
  options.add_generation_prompt = nibble::get_or<bool>(request, "add_generation_prompt", false);
  options.tools = value_or_null(request, "tools");
  options.documents = value_or_null(request, "documents");
  options.extra_kwargs = value_or_null(request, "kwargs");
  options.bos_token = nibble::get_or<std::string>(request, "bos_token", "");
  options.eos_token = nibble::get_or<std::string>(request, "eos_token", "");
  const auto messages = request.find("messages");
  return chat_template->render(messages == request.end() ? Json::array() : *messages, options);
}

}  // namespace

int main() {
  std::map<std::string, std::unique_ptr<ChatTemplate>> compiled;
  for (std::string line; std::getline(std::cin, line);) {
    Json reply;
    try {
      reply["text"] = render(nibble::parse_json(line, "stdin"), compiled);
    } catch (const nibble::Error& error) {
      reply["error"] = error.what();
    }
    std::cout << reply.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
  }
  return 0;
}
