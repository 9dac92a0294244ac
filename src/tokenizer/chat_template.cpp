#include "tokenizer/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tokenizer/chat_template_families.h"
#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_parser.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer {
namespace {

using Variables = std::unordered_map<std::string, jinja::Value>;

/// transformers offers a message's reasoning under the names that templates read: reasoning_content and thinking.
Json with_reasoning_names(const Json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(name);
    if (found == message.end() || found->is_null()) continue;
    Json renamed = {{"thinking", *found}};
    for (const auto& [key, value] : message.items()) renamed[key] = value;
    renamed["reasoning_content"] = *found;
    return renamed;
  }
  return message;
}

jinja::Value message_values(const Json& messages) {
  if (!messages.is_array()) throw Error(ErrorCode::InvalidArgument, "messages: expected a list of messages");
  Json renamed = Json::array();
  for (const Json& message : messages) {
    if (!message.is_object()) throw Error(ErrorCode::InvalidArgument, "messages: each message must be an object");
    renamed.push_back(with_reasoning_names(message));
  }
  return jinja::Value::from_json(renamed);
}

void add_extra_kwargs(Variables& variables, const Json& extra_kwargs) {
  if (extra_kwargs.is_null()) return;
  if (!extra_kwargs.is_object()) {
    throw Error(ErrorCode::InvalidArgument, "chat_template_kwargs: expected an object");
  }
  constexpr std::array<std::string_view, 8> kReserved = {
      "messages",      "tools",    "documents",    "add_generation_prompt",
      "chat_template", "tokenize", "conversation", "continue_final_message"};
  for (const auto& [key, value] : extra_kwargs.items()) {
    if (std::find(kReserved.begin(), kReserved.end(), key) != kReserved.end()) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("chat_template_kwargs: '{}' cannot be set there; use the request's own field", key));
    }
    variables.insert_or_assign(key, jinja::Value::from_json(value));
  }
}

class JinjaChatTemplate : public ChatTemplate {
 public:
  JinjaChatTemplate(jinja::Template parsed, std::string_view name) : template_(std::move(parsed)), name_(name) {}

  std::string render(const Json& messages, const Options& options) const override {
    Variables variables;
    // A tokenizer without such a token leaves the name undefined, as transformers does.
    if (!options.bos_token.empty()) variables["bos_token"] = options.bos_token;
    if (!options.eos_token.empty()) variables["eos_token"] = options.eos_token;
    add_extra_kwargs(variables, options.extra_kwargs);
    variables["messages"] = message_values(messages);
    variables["tools"] = jinja::Value::from_json(options.tools);
    variables["documents"] = jinja::Value::from_json(options.documents);
    variables["add_generation_prompt"] = options.add_generation_prompt;
    jinja::Interpreter interpreter(template_, std::move(variables), jinja::Limits{});
    try {
      return interpreter.run();
    } catch (const Error& error) {
      // What a template says with raise_exception is meant for whoever wrote the messages.
      if (interpreter.was_raised_by_template()) throw;
      throw error.in(fmt::format("{}: line {}", name_, interpreter.line()));
    }
  }

 private:
  jinja::Template template_;
  std::string name_;
};

/// The template of tokenizer_config.json; "" where it has none.
std::string configured_template(const Json& tokenizer_config) {
  if (!tokenizer_config.is_object()) return {};
  const auto found = tokenizer_config.find("chat_template");
  if (found == tokenizer_config.end() || found->is_null()) return {};
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) {
    throw Error(ErrorCode::InvalidArgument,
                "tokenizer_config.json: chat_template: expected a string or a list of named templates");
  }
  for (const Json& entry : *found) {
    if (get_optional<std::string>(entry, "name") == "default") return get<std::string>(entry, "template");
  }
  return {};
}

bool mentions(std::string_view model_name, std::initializer_list<std::string_view> words) {
  const std::string lower = jinja::text::lower(model_name);
  return std::any_of(words.begin(), words.end(),
                     [&](std::string_view word) { return lower.find(word) != std::string::npos; });
}

ChatTemplateChoice own(std::string_view source, std::string_view origin) {
  return {ChatTemplate::compile(source, origin), std::string(origin), false};
}

ChatTemplateChoice fallback(std::string_view source, std::string_view origin) {
  return {ChatTemplate::compile(std::string(kTextOfContent).append(source), origin), std::string(origin), true};
}

}  // namespace

std::unique_ptr<ChatTemplate> ChatTemplate::compile(std::string_view source, std::string_view name) {
  try {
    return std::make_unique<JinjaChatTemplate>(jinja::parse(source), name);
  } catch (const Error& error) {
    throw error.in(name);
  }
}

ChatTemplateChoice choose_chat_template(std::string_view override_source, std::string_view chat_template_jinja,
                                        const Json& tokenizer_config, std::string_view model_type,
                                        std::string_view model_name, bool vocabulary_has_im_start) {
  if (!override_source.empty()) return own(override_source, "--chat-template");
  if (!chat_template_jinja.empty()) return own(chat_template_jinja, "chat_template.jinja");
  const std::string configured = configured_template(tokenizer_config);
  if (!configured.empty()) return own(configured, "tokenizer_config.json");
  // The vocabulary is better evidence than a name: many fine-tunes of Mistral and Llama speak ChatML.
  if (vocabulary_has_im_start) return fallback(kChatMlTemplate, "ChatML");
  if (model_type == "llama" && mentions(model_name, {"llama-2", "llama2", "llama_2", "codellama"})) {
    return fallback(kLlama2Template, "Llama-2 family");
  }
  if (model_type == "mistral" || model_type == "mixtral") return fallback(kMistralTemplate, "Mistral family");
  return fallback(kPlainTurnsTemplate, "plain turns");
}

}  // namespace nibble::tokenizer
