#include "tokenizer/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "tokenizer/jinja_value.h"

namespace nibble::tokenizer::jinja::text {
namespace {

const utf8proc_uint8_t* bytes(const char* text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text);
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

/// Byte offset of the code point that ends before `end`.
std::size_t previous(std::string_view text, std::size_t end) {
  do --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

template <class Predicate>
bool all_cased(std::string_view text, Predicate holds) {
  bool has_cased = false;
  for (std::size_t i = 0; i < text.size(); i += char_size(text, i)) {
    const char32_t c = code_point_at(text, i);
    if (!is_cased(c)) continue;
    if (!holds(c)) return false;
    has_cased = true;
  }
  return has_cased;
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size()) {
    utf8proc_int32_t code_point = 0;
    const auto size = utf8proc_iterate(bytes(text.data()) + position,
                                       static_cast<utf8proc_ssize_t>(text.size() - position), &code_point);
    if (size <= 0) return false;
    position += static_cast<std::size_t>(size);
  }
  return true;
}

std::size_t char_size(std::string_view text, std::size_t byte_offset) {
  const auto lead = static_cast<unsigned char>(text[byte_offset]);
  const std::size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(size, text.size() - byte_offset);
}

char32_t code_point_at(std::string_view text, std::size_t byte_offset) {
  utf8proc_int32_t code_point = 0;
  utf8proc_iterate(bytes(text.data()) + byte_offset, static_cast<utf8proc_ssize_t>(text.size() - byte_offset),
                   &code_point);
  return static_cast<char32_t>(code_point);
}

void append(std::string& text, char32_t code_point) {
  std::array<utf8proc_uint8_t, 4> encoded{};
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), encoded.data());
  text.append(reinterpret_cast<const char*>(encoded.data()), static_cast<std::size_t>(size));
}

std::size_t count(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::size_t byte_offset(std::string_view text, std::size_t index) {
  std::size_t position = 0;
  while (index > 0 && position < text.size()) {
    position += char_size(text, position);
    --index;
  }
  return position;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> pieces;
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t size = char_size(text, position);
    pieces.push_back(text.substr(position, size));
    position += size;
  }
  return pieces;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
  }
}

bool is_alpha(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

bool is_digit(char32_t c) {
  return is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}

bool is_alnum(char32_t c) {
  const auto kind = category(c);
  return is_alpha(c) || kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || is_digit(c);
}

bool is_mark(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC;
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F);
}

bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA || (c >= 0x2B0 && c <= 0x2B8) ||
         (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9);
}

bool is_cased(char32_t c) {
  return is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT;
}

bool is_all_lower(std::string_view text) {
  return all_cased(text, is_lower);
}

bool is_all_upper(std::string_view text) {
  return all_cased(text, is_upper);
}

std::size_t find(std::string_view text, std::string_view part, std::size_t from) {
  if (from > text.size() || part.size() > text.size() - from) return std::string_view::npos;
  // std::string_view::find is quadratic for a needle like "aaaa…b"; glibc's memmem is not.
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

std::size_t rfind(std::string_view text, std::string_view part) {
  constexpr std::size_t kShort = 16;
  if (part.size() <= kShort) return text.rfind(part);
  const std::string reversed_text(text.rbegin(), text.rend());
  const std::string reversed_part(part.rbegin(), part.rend());
  const std::size_t found = find(reversed_text, reversed_part);
  return found == std::string_view::npos ? found : text.size() - found - part.size();
}

std::string_view strip(std::string_view text, Sides sides, std::optional<std::string_view> set) {
  std::vector<std::string_view> wanted;
  if (set) wanted = characters(*set);
  std::sort(wanted.begin(), wanted.end());
  const auto is_stripped = [&](std::size_t begin, std::size_t size) {
    if (!set) return is_space(code_point_at(text, begin));
    return std::binary_search(wanted.begin(), wanted.end(), text.substr(begin, size));
  };
  std::size_t begin = 0;
  std::size_t end = text.size();
  if (sides != Sides::Right) {
    while (begin < end && is_stripped(begin, char_size(text, begin))) begin += char_size(text, begin);
  }
  if (sides != Sides::Left) {
    while (end > begin) {
      const std::size_t start = previous(text, end);
      if (!is_stripped(start, end - start)) break;
      end = start;
    }
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> split_space(std::string_view text, std::int64_t max_splits) {
  std::vector<std::string_view> parts;
  text = strip(text, Sides::Left);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) >= max_splits) {
      parts.push_back(text);  // the rest as it is
      break;
    }
    std::size_t end = 0;
    while (end < text.size() && !is_space(code_point_at(text, end))) end += char_size(text, end);
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), Sides::Left);
  }
  return parts;
}

std::vector<std::string_view> rsplit_space(std::string_view text, std::int64_t max_splits) {
  std::vector<std::string_view> parts;
  text = strip(text, Sides::Right);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) >= max_splits) {
      parts.push_back(text);
      break;
    }
    std::size_t begin = text.size();
    while (begin > 0) {
      const std::size_t start = previous(text, begin);
      if (is_space(code_point_at(text, start))) break;
      begin = start;
    }
    parts.push_back(text.substr(begin));
    text = strip(text.substr(0, begin), Sides::Right);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator, std::int64_t max_splits) {
  std::vector<std::string_view> parts;
  while (max_splits < 0 || static_cast<std::int64_t>(parts.size()) < max_splits) {
    const std::size_t found = find(text, separator);
    if (found == std::string_view::npos) break;
    parts.push_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> rsplit(std::string_view text, std::string_view separator, std::int64_t max_splits) {
  std::vector<std::string_view> parts;
  while (max_splits < 0 || static_cast<std::int64_t>(parts.size()) < max_splits) {
    const std::size_t found = rfind(text, separator);
    if (found == std::string_view::npos) break;
    parts.push_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, LineEnds ends) {
  std::vector<std::string_view> lines;
  std::size_t begin = 0;
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t size = char_size(text, position);
    if (!is_line_end(code_point_at(text, position))) {
      position += size;
      continue;
    }
    const bool is_pair = text[position] == '\r' && position + 1 < text.size() && text[position + 1] == '\n';
    const std::size_t next = position + size + (is_pair ? 1 : 0);
    lines.push_back(text.substr(begin, (ends == LineEnds::Keep ? next : position) - begin));
    begin = position = next;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::int64_t count_of(std::string_view text, std::string_view part) {
  if (part.empty()) return static_cast<std::int64_t>(count(text)) + 1;
  std::int64_t found = 0;
  for (std::size_t at = find(text, part); at != std::string_view::npos; at = find(text, part, at + part.size())) {
    ++found;
  }
  return found;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t max_count) {
  std::int64_t left = count_of(text, from);
  if (max_count >= 0) left = std::min(left, max_count);
  check_string_size(text.size() + static_cast<std::uint64_t>(left) * to.size());
  std::string result;
  std::size_t position = 0;
  for (; left > 0; --left) {
    if (from.empty()) {  // Python puts `to` before every character and at the end
      result.append(to);
      if (position == text.size()) break;
      const std::size_t size = char_size(text, position);
      result.append(text.substr(position, size));
      position += size;
      continue;
    }
    const std::size_t found = find(text, from, position);
    result.append(text.substr(position, found - position)).append(to);
    position = found + from.size();
  }
  return result.append(text.substr(position));
}

std::string repeat(std::string_view text, std::int64_t times) {
  if (times <= 0 || text.empty()) return {};
  const auto count = static_cast<std::uint64_t>(times);
  check_string_size(count > kMaxStringBytes ? count : count * text.size());
  std::string result;
  result.reserve(count * text.size());
  for (std::uint64_t i = 0; i < count; ++i) result.append(text);
  return result;
}

std::string escape_html(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&#34;"; break;
      case '\'': result += "&#39;"; break;
      default: result += c;
    }
  }
  check_string_size(result.size());
  return result;
}

}  // namespace nibble::tokenizer::jinja::text
