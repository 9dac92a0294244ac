#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::tokenizer::jinja {

struct Token {
  enum class Kind : std::uint8_t {
    Data,
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name,
    String,
    Integer,
    Float,
    Operator,
    End
  };
  Kind kind = Kind::End;
  std::string text;  // data, name, unescaped string or operator
  std::int64_t integer = 0;
  double number = 0;
  int line = 1;
};

/// Cuts a template into tokens as jinja2 3.1's lexer does with trim_blocks and lstrip_blocks, white-space control
/// (`-`, `+`), raw blocks and comments applied. The last token is End.
/// Errors: InvalidArgument "line N: …".
std::vector<Token> tokenize(std::string_view source);

/// Throws InvalidArgument "line N: message".
[[noreturn]] void fail_at(int line, std::string_view message);

}  // namespace nibble::tokenizer::jinja
