#include "tokenizer/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "tokenizer/jinja_text.h"
#include "tokenizer/jinja_value.h"

namespace nibble::tokenizer::jinja {
namespace {

bool is_ascii_digit(char c) {
  return c >= '0' && c <= '9';
}

/// Every line end becomes \n; one at the end of the source goes.
std::string normalize_newlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
      continue;
    }
    text += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() && {
    while (position_ < source_.size()) lex_root();
    push(Token::Kind::End);
    return std::move(tokens_);
  }

 private:
  enum class Opening : std::uint8_t { Variable, Block, Comment };

  void lex_root();
  void lex_comment();
  void lex_raw(std::size_t body_begin);
  void lex_tag(Token::Kind end_kind);
  bool try_tag_end(Token::Kind end_kind);
  void lex_name();
  void lex_number();
  void lex_string();
  void lex_operator();
  std::string unescape(std::string_view body) const;
  std::size_t unescape_one(std::string_view body, std::size_t at, std::string& out) const;

  void push(Token::Kind kind, std::string text = {}) { tokens_.push_back({kind, std::move(text), 0, 0, line_}); }
  void push_data(std::string_view data) {
    if (!data.empty()) push(Token::Kind::Data, std::string(data));
  }
  bool starts_with(std::string_view wanted, std::size_t at) const {
    return std::string_view(source_).substr(std::min(at, source_.size())).starts_with(wanted);
  }
  std::size_t skip_space(std::size_t at) const {
    while (at < source_.size() && text::is_space(text::code_point_at(source_, at))) at += text::char_size(source_, at);
    return at;
  }
  /// Moves on, counting lines and remembering whether the part ended one.
  void advance_to(std::size_t end) {
    const std::string_view part = std::string_view(source_).substr(position_, end - position_);
    line_ += static_cast<int>(std::count(part.begin(), part.end(), '\n'));
    is_line_start_ = part.ends_with('\n');
    position_ = end;
  }
  /// Where the tag end at `at` stops, its white-space control applied; nullopt where `closing` does not stand there.
  std::optional<std::size_t> match_end(std::size_t at, std::string_view closing) const;
  std::string_view left_stripped(std::string_view data, char sign, Opening opening) const;

  std::string source_;
  std::size_t position_ = 0;
  int line_ = 1;
  bool is_line_start_ = true;
  std::string braces_;  // the closing brackets still due inside the tag
  std::vector<Token> tokens_;
};

std::string_view Lexer::left_stripped(std::string_view data, char sign, Opening opening) const {
  if (sign == '-') return text::strip(data, text::Sides::Right);
  if (sign == '+' || opening == Opening::Variable) return data;
  // lstrip_blocks: white space alone between the line's start and the tag goes.
  const std::size_t newline = data.rfind('\n');
  if (newline == std::string_view::npos && !is_line_start_) return data;
  const std::size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
  return text::strip(data.substr(line_begin), text::Sides::Left).empty() ? data.substr(0, line_begin) : data;
}

std::optional<std::size_t> Lexer::match_end(std::size_t at, std::string_view closing) const {
  if (starts_with("-", at) && starts_with(closing, at + 1)) return skip_space(at + 1 + closing.size());
  const bool is_variable = closing == "}}";
  if (!is_variable && starts_with("+", at) && starts_with(closing, at + 1)) return at + 1 + closing.size();
  if (!starts_with(closing, at)) return std::nullopt;
  const std::size_t end = at + closing.size();
  return !is_variable && starts_with("\n", end) ? end + 1 : end;  // trim_blocks
}

void Lexer::lex_root() {
  std::size_t begin = position_;
  while (true) {
    begin = source_.find('{', begin);
    if (begin == std::string::npos || begin + 1 >= source_.size()) {
      push_data(std::string_view(source_).substr(position_));
      position_ = source_.size();
      return;
    }
    const char next = source_[begin + 1];
    if (next == '{' || next == '%' || next == '#') break;
    ++begin;
  }
  const char next = source_[begin + 1];
  const Opening opening = next == '{' ? Opening::Variable : next == '%' ? Opening::Block : Opening::Comment;
  const char sign_char = begin + 2 < source_.size() ? source_[begin + 2] : ' ';
  const bool has_sign = sign_char == '-' || sign_char == '+';
  const std::string_view data = std::string_view(source_).substr(position_, begin - position_);
  push_data(left_stripped(data, has_sign ? sign_char : ' ', opening));
  advance_to(begin);
  const std::size_t after = begin + (has_sign ? 3 : 2);
  if (opening == Opening::Comment) {
    advance_to(after);
    return lex_comment();
  }
  if (opening == Opening::Block) {
    // {% raw %} is one token: nothing inside may look like a tag.
    const std::size_t word = skip_space(after);
    const std::size_t word_end = skip_space(word + 3);
    if (starts_with("raw", word) && (starts_with("%}", word_end) || starts_with("-%}", word_end))) {
      return lex_raw(starts_with("-", word_end) ? skip_space(word_end + 3) : word_end + 2);
    }
  }
  push(opening == Opening::Variable ? Token::Kind::VariableBegin : Token::Kind::BlockBegin);
  advance_to(after);
  lex_tag(opening == Opening::Variable ? Token::Kind::VariableEnd : Token::Kind::BlockEnd);
}

void Lexer::lex_comment() {
  for (std::size_t at = position_; at < source_.size(); ++at) {
    if (const auto end = match_end(at, "#}")) return advance_to(*end);
  }
  if (position_ < source_.size()) fail_at(line_, "Missing end of comment tag");
}

void Lexer::lex_raw(std::size_t body_begin) {
  advance_to(body_begin);
  std::size_t at = position_;
  while ((at = source_.find("{%", at)) != std::string::npos) {
    const char sign = at + 2 < source_.size() ? source_[at + 2] : ' ';
    const bool has_sign = sign == '-' || sign == '+';
    const std::size_t word = skip_space(at + (has_sign ? 3 : 2));
    if (starts_with("endraw", word)) {
      if (const auto end = match_end(skip_space(word + 6), "%}")) {
        const std::string_view data = std::string_view(source_).substr(position_, at - position_);
        push_data(left_stripped(data, has_sign ? sign : ' ', Opening::Block));
        return advance_to(*end);
      }
    }
    at += 2;
  }
  if (position_ < source_.size()) fail_at(line_, "Missing end of raw directive");
}

bool Lexer::try_tag_end(Token::Kind end_kind) {
  if (!braces_.empty()) return false;  // `}}` may close two dicts
  const auto end = match_end(position_, end_kind == Token::Kind::VariableEnd ? "}}" : "%}");
  if (!end) return false;
  push(end_kind);
  advance_to(*end);
  return true;
}

void Lexer::lex_tag(Token::Kind end_kind) {
  while (position_ < source_.size()) {
    if (try_tag_end(end_kind)) return;
    const std::size_t after_space = skip_space(position_);
    if (after_space != position_) {
      advance_to(after_space);
      continue;
    }
    const char c = source_[position_];
    if (is_ascii_digit(c)) {
      lex_number();
    } else if (c == '_' || text::is_alnum(text::code_point_at(source_, position_))) {
      lex_name();
    } else if (c == '"' || c == '\'') {
      lex_string();
    } else {
      lex_operator();
    }
  }
}

void Lexer::lex_name() {
  std::size_t end = position_;
  while (end < source_.size() && (source_[end] == '_' || text::is_alnum(text::code_point_at(source_, end)) ||
                                  text::is_mark(text::code_point_at(source_, end)))) {
    end += text::char_size(source_, end);
  }
  push(Token::Kind::Name, source_.substr(position_, end - position_));
  advance_to(end);
}

void Lexer::lex_number() {
  // Digits, each run possibly split by single underscores.
  const auto digits = [&](std::size_t at, const auto& is_digit) {
    std::size_t end = at;
    while (end < source_.size() && (is_digit(source_[end]) ||
                                    (source_[end] == '_' && end + 1 < source_.size() && is_digit(source_[end + 1])))) {
      ++end;
    }
    return end;
  };
  const auto without_underscores = [&](std::size_t begin, std::size_t end) {
    std::string text = source_.substr(begin, end - begin);
    std::erase(text, '_');
    return text;
  };
  std::size_t end = digits(position_, is_ascii_digit);
  bool is_float = false;
  const bool follows_dot = position_ > 0 && source_[position_ - 1] == '.';  // x.0.1 holds two integers
  if (!follows_dot && starts_with(".", end) && end + 1 < source_.size() && is_ascii_digit(source_[end + 1])) {
    is_float = true;
    end = digits(end + 1, is_ascii_digit);
  }
  if (!follows_dot && (starts_with("e", end) || starts_with("E", end))) {
    const std::size_t sign = starts_with("+", end + 1) || starts_with("-", end + 1) ? 1 : 0;
    if (end + 1 + sign < source_.size() && is_ascii_digit(source_[end + 1 + sign])) {
      is_float = true;
      end = digits(end + 1 + sign, is_ascii_digit);
    }
  }
  std::string text = without_underscores(position_, end);
  if (is_float) {
    push(Token::Kind::Float, text);
    std::from_chars(text.data(), text.data() + text.size(), tokens_.back().number);
    return advance_to(end);
  }
  int base = 10;
  const char mark = end < source_.size() && text == "0" ? static_cast<char>(source_[end] | 0x20) : ' ';
  if (mark == 'x' || mark == 'o' || mark == 'b') {
    base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
    const std::size_t prefixed = digits(end + 1, [base](char c) {
      const int value = is_ascii_digit(c)      ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : 99;
      return value < base;
    });
    if (prefixed > end + 1) {
      text = without_underscores(end + 1, prefixed);
      end = prefixed;
    } else {
      base = 10;
    }
  } else if (text.size() > 1 && text[0] == '0' && text.find_first_not_of('0') != std::string::npos) {
    fail_at(line_, fmt::format("'{}' is no integer: leading zeros", text));
  }
  push(Token::Kind::Integer, text);
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), tokens_.back().integer, base);
  if (parsed.ec != std::errc()) fail_at(line_, fmt::format("the integer {} does not fit 64 bits", text.substr(0, 40)));
  advance_to(end);
}

void Lexer::lex_string() {
  const char quote = source_[position_];
  std::size_t end = position_ + 1;
  while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
  if (end >= source_.size()) fail_at(line_, fmt::format("the string opened with {} has no end", quote));
  push(Token::Kind::String, unescape(std::string_view(source_).substr(position_ + 1, end - position_ - 1)));
  advance_to(end + 1);
}

std::string Lexer::unescape(std::string_view body) const {
  std::string out;
  out.reserve(body.size());
  for (std::size_t i = 0; i < body.size();) {
    if (body[i] != '\\') {
      out += body[i++];
      continue;
    }
    i = unescape_one(body, i + 1, out);
  }
  return out;
}

/// `at` is behind the backslash; returns where the escape ends. Python's unicode-escape codec.
std::size_t Lexer::unescape_one(std::string_view body, std::size_t at, std::string& out) const {
  constexpr std::string_view kNames = "abfnrtv\\'\"\n";
  constexpr std::array<std::string_view, 11> kValues = {"\a", "\b", "\f", "\n", "\r", "\t", "\v", "\\", "'", "\"", ""};
  const char c = body[at];
  if (const std::size_t known = kNames.find(c); known != std::string_view::npos) {
    out += kValues[known];
    return at + 1;
  }
  std::size_t size = 0;
  int base = 16;
  if (c >= '0' && c <= '7') {
    base = 8;
    while (size < 3 && at + size < body.size() && body[at + size] >= '0' && body[at + size] <= '7') ++size;
  } else if (c == 'x' || c == 'u' || c == 'U') {
    size = c == 'x' ? 2 : c == 'u' ? 4 : 8;
    ++at;
  } else if (c == 'N') {
    fail_at(line_, "\\N{…} escapes are not known here; write the character itself");
  } else {
    out += '\\';  // an unknown escape stays as it is
    return at;
  }
  std::uint32_t value = 0;
  const char* begin = body.data() + at;
  const char* end = body.data() + std::min(body.size(), at + size);
  const auto parsed = std::from_chars(begin, end, value, base);
  if (parsed.ec != std::errc() || parsed.ptr != begin + size) fail_at(line_, "truncated escape in a string");
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) fail_at(line_, "illegal Unicode character in a string");
  text::append(out, static_cast<char32_t>(value));
  return at + size;
}

void Lexer::lex_operator() {
  constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
  const auto* found = std::find_if(kOperators.begin(), kOperators.end(),
                                   [&](std::string_view text) { return starts_with(text, position_); });
  if (found == kOperators.end()) {
    const std::size_t size = text::char_size(source_, position_);
    fail_at(line_, fmt::format("unexpected char '{}' at byte {}", source_.substr(position_, size), position_));
  }
  constexpr std::string_view kOpening = "([{";
  constexpr std::string_view kClosing = ")]}";
  if (const std::size_t open = kOpening.find(*found); open != std::string_view::npos) {
    braces_ += kClosing[open];
  } else if (kClosing.find(*found) != std::string_view::npos) {
    if (braces_.empty()) fail_at(line_, fmt::format("unexpected '{}'", *found));
    if (braces_.back() != (*found)[0])
      fail_at(line_, fmt::format("unexpected '{}', expected '{}'", *found, braces_.back()));
    braces_.pop_back();
  }
  push(Token::Kind::Operator, std::string(*found));
  advance_to(position_ + found->size());
}

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

void fail_at(int line, std::string_view message) {
  fail(fmt::format("line {}: {}", line, message));
}

}  // namespace nibble::tokenizer::jinja
