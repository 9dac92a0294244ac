#pragma once

#include <string>
#include <string_view>

#include "tokenizer/jinja_value.h"

/// How values become text: Python's str() and repr(), and json.dumps.
namespace nibble::tokenizer::jinja {

/// str(): what `{{ value }}` prints. Errors: InvalidArgument where the text would be too long.
std::string to_string(const Value& value);
std::string repr(const Value& value);
std::string repr(std::string_view text);
/// Shortest text that reads back as the same number: "1.0", "1e+16", "inf".
std::string repr(double number);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool is_indented = false;
  std::string indent;  // of one level, where is_indented
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// json.dumps. Errors: InvalidArgument "Object of type Undefined is not JSON serializable".
std::string to_json(const Value& value, const JsonStyle& style);

}  // namespace nibble::tokenizer::jinja
