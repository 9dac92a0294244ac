#include "tokenizer/oniguruma.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace nibble::tokenizer {
namespace {

// Members of a class: Unicode's White_Space, and Oniguruma's "word" (UTS #18 without Join_Control).
constexpr std::string_view kSpace =
    R"(\t-\r\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (at_ < pattern_.size()) step();
    return std::move(out_);
  }

 private:
  void step() {
    switch (pattern_[at_]) {
      case '\\': return escape();
      case '[': return character_class();
      case '(': return open_group();
      case ')': return close_group();
      case '{': return interval();
      case '*':
      case '+':
      case '?':
      case '|': return copy(1);
      default:
        atom_begin_ = out_.size();
        copy(1);
        while (at_ < pattern_.size() && (static_cast<unsigned char>(pattern_[at_]) & 0xC0) == 0x80) copy(1);
    }
  }

  void escape() {
    atom_begin_ = out_.size();
    switch (next()) {
      case 's': return replace(2, fmt::format("[{}]", kSpace));
      case 'S': return replace(2, fmt::format("[^{}]", kSpace));
      case 'w': return replace(2, fmt::format("[{}]", kWord));
      case 'W': return replace(2, fmt::format("[^{}]", kWord));
      case 'h': return replace(2, fmt::format("[{}]", kHexDigit));
      case 'H': return replace(2, fmt::format("[^{}]", kHexDigit));
      default: copy_escape();
    }
  }

  void character_class() {
    atom_begin_ = out_.size();
    copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == '^') copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == ']') fail("a class that begins with ]");
    while (at_ < pattern_.size() && pattern_[at_] != ']') class_member();
    copy(1);
  }

  void class_member() {
    const std::string_view rest = pattern_.substr(at_);
    if (rest.starts_with("[:")) {
      const std::size_t end = rest.find(":]");
      return copy(end == std::string_view::npos ? rest.size() : end + 2);
    }
    if (rest.front() == '[') fail("a class inside a class");
    if (rest.starts_with("&&")) fail("an intersection of classes (&&)");
    if (rest.front() != '\\') return copy(1);
    switch (next()) {
      case 's': return replace(2, kSpace);
      case 'S': return replace(2, R"(\S\x{180e})");
      case 'w': return replace(2, kWord);
      case 'h': return replace(2, kHexDigit);
      case 'W':
      case 'H': fail("\\W or \\H inside a class");
      default: copy_escape();
    }
  }

  void open_group() {
    groups_.push_back(out_.size());
    if (pattern_.substr(at_).starts_with("(*")) fail("a verb (*…)");
    copy(1);
    if (at_ == pattern_.size() || pattern_[at_] != '?') return;
    copy(1);
    // Options: Ruby's m lets the dot match newlines, which PCRE2 calls s.
    while (at_ < pattern_.size() && std::string_view("imx-").find(pattern_[at_]) != std::string_view::npos) {
      if (pattern_[at_] == 'm') {
        replace(1, "s");
      } else {
        copy(1);
      }
    }
    // The rest of the opening, (?: (?= (?! (?> (?<= (?<! (?<name>, holds nothing that step() would change wrongly:
    // these characters are copied one by one, and none is a quantifier but the second ? consumed above.
  }

  void close_group() {
    if (!groups_.empty()) {
      atom_begin_ = groups_.back();
      groups_.pop_back();
    }
    copy(1);
  }

  void interval() {
    const std::string_view rest = pattern_.substr(at_);
    const std::size_t close = rest.find('}');
    const std::string_view bounds = close == std::string_view::npos ? rest : rest.substr(1, close - 1);
    const bool is_interval = close != std::string_view::npos && !bounds.empty() && bounds != "," &&
                             bounds.find_first_not_of("0123456789,") == std::string_view::npos &&
                             std::count(bounds.begin(), bounds.end(), ',') <= 1;
    if (!is_interval) {
      atom_begin_ = out_.size();
      return replace(1, "\\{");
    }
    // Ruby has no possessive intervals: x{1,3}+ repeats the interval.
    const bool is_repeated = rest.substr(close + 1).starts_with('+');
    if (is_repeated) out_.insert(atom_begin_, "(?:");
    replace(close + 1, fmt::format("{{{}{}}}{}", bounds.front() == ',' ? "0" : "", bounds, is_repeated ? ")" : ""));
  }

  void copy_escape() {
    const char kind = next();
    if (kind == 'Q' || kind == 'E') fail("\\Q or \\E");
    copy(2);
    // \p{…}, \x{…}, \k<…>: the braces belong to the escape.
    if (std::string_view("pPx").find(kind) == std::string_view::npos) return;
    if (at_ == pattern_.size() || pattern_[at_] != '{') return;
    const std::size_t close = pattern_.find('}', at_);
    copy(close == std::string_view::npos ? pattern_.size() - at_ : close + 1 - at_);
  }

  char next() const { return at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0'; }

  void copy(std::size_t size) {
    out_.append(pattern_.substr(at_, size));
    at_ = std::min(at_ + size, pattern_.size());
  }

  void replace(std::size_t size, std::string_view by) {
    out_.append(by);
    at_ = std::min(at_ + size, pattern_.size());
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw Error(ErrorCode::Unsupported,
                fmt::format("tokenizer.json: pattern \"{}\" uses {}, which nibble does not read", pattern_, what));
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_begin_ = 0;       // in out_: what a quantifier at the end applies to
  std::vector<std::size_t> groups_;  // in out_: open parentheses
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace nibble::tokenizer
