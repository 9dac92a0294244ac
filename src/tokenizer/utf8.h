#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::tokenizer {

constexpr char32_t kReplacementCharacter = 0xFFFD;

/// One code point of valid UTF-8 and the bytes it takes (1 to 4).
struct CodePoint {
  char32_t value = 0;
  std::uint32_t size_bytes = 0;
};

/// The code point that starts at `offset`. `text` is valid UTF-8 and `offset` < size is a character's first byte.
inline CodePoint decode_utf8(std::string_view text, std::size_t offset) {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[offset + i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

/// The code point that ends right before `end` > 0 in valid UTF-8.
CodePoint decode_utf8_before(std::string_view text, std::size_t end);

/// Appends `code_point`, a Unicode scalar value.
void append_utf8(std::string& text, char32_t code_point);

bool is_valid_utf8(std::string_view text);

/// Every maximal part that cannot be UTF-8 becomes one U+FFFD, as Python's decode(errors="replace") does it.
std::string replace_invalid_utf8(std::string_view bytes);

/// Number of bytes at the end (0 to 3) that more bytes could complete to a character.
std::size_t incomplete_utf8_suffix(std::string_view bytes);

}  // namespace nibble::tokenizer
