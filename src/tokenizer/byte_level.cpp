#include "tokenizer/byte_level.h"

#include <array>

#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

constexpr std::size_t kAlphabetEnd = 0x144;  // 256 + the 68 bytes that have no visible character of their own
constexpr std::int16_t kNoByte = -1;

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<std::int16_t, kAlphabetEnd> byte{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(kNoByte);
  char32_t next_substitute = 0x100;
  for (std::size_t b = 0; b < 256; ++b) {
    const bool is_visible = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
    alphabet.character[b] = is_visible ? static_cast<char32_t>(b) : next_substitute++;
    alphabet.byte[alphabet.character[b]] = static_cast<std::int16_t>(b);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

char32_t byte_level_character(std::uint8_t byte) {
  return kAlphabet.character[byte];
}

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 2);
  for (const char c : bytes) append_utf8(text, byte_level_character(static_cast<std::uint8_t>(c)));
  return text;
}

std::optional<std::string> from_byte_level(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint code_point = decode_utf8(text, at);
    at += code_point.size_bytes;
    if (code_point.value >= kAlphabetEnd || kAlphabet.byte[code_point.value] == kNoByte) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte[code_point.value]);
  }
  return bytes;
}

}  // namespace nibble::tokenizer
