#include "tokenizer/component_json.h"

#include <fmt/format.h>

#include "tokenizer/utf8.h"

namespace nibble::tokenizer {

ComponentJson::ComponentJson(simdjson::dom::element element, std::string place) : place_(std::move(place)) {
  if (element.get(object_) != simdjson::SUCCESS) fail(ErrorCode::Corrupt, "is not a JSON object");
}

std::optional<simdjson::dom::element> ComponentJson::find(std::string_view key) const {
  std::optional<simdjson::dom::element> found;
  for (const auto field : object_) {  // of a repeated key the last one counts, as in Python
    if (field.key == key) found = field.value;
  }
  if (found && found->is_null()) found.reset();
  return found;
}

simdjson::dom::element ComponentJson::required(std::string_view key) const {
  const auto value = find(key);
  if (!value) fail(ErrorCode::Corrupt, fmt::format("lacks \"{}\"", key));
  return *value;
}

ComponentJson ComponentJson::object(std::string_view key) const {
  return {required(key), place_.empty() ? std::string(key) : fmt::format("{}.{}", place_, key)};
}

simdjson::dom::array ComponentJson::array(std::string_view key) const {
  simdjson::dom::array value;
  if (required(key).get(value) != simdjson::SUCCESS) {
    fail(ErrorCode::Corrupt, fmt::format("\"{}\" is not an array", key));
  }
  return value;
}

std::string_view ComponentJson::string(std::string_view key) const {
  std::string_view value;
  if (required(key).get(value) != simdjson::SUCCESS) {
    fail(ErrorCode::Corrupt, fmt::format("\"{}\" is not a string", key));
  }
  return value;
}

bool ComponentJson::boolean(std::string_view key) const {
  bool value = false;
  if (required(key).get(value) != simdjson::SUCCESS) {
    fail(ErrorCode::Corrupt, fmt::format("\"{}\" is neither true nor false", key));
  }
  return value;
}

std::int64_t ComponentJson::integer(std::string_view key) const {
  std::int64_t value = 0;
  if (required(key).get(value) != simdjson::SUCCESS) {
    fail(ErrorCode::Corrupt, fmt::format("\"{}\" is not an integer", key));
  }
  return value;
}

char32_t ComponentJson::character(std::string_view key) const {
  const std::string_view text = string(key);
  if (text.empty()) fail(ErrorCode::Corrupt, fmt::format("\"{}\" is empty", key));
  const CodePoint code_point = decode_utf8(text, 0);
  if (code_point.size_bytes != text.size()) {
    fail(ErrorCode::Corrupt, fmt::format("\"{}\" is not a single character", key));
  }
  return code_point.value;
}

void ComponentJson::fail(ErrorCode code, std::string_view problem) const {
  throw Error(code, fmt::format("tokenizer.json: {}{}{}", place_, place_.empty() ? "" : " ", problem));
}

void ComponentJson::fail_unknown_type(std::string_view readable) const {
  fail(ErrorCode::Unsupported,
       fmt::format("is of type \"{}\", which nibble does not read; it reads {}", type(), readable));
}

}  // namespace nibble::tokenizer
