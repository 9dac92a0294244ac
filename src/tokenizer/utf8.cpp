#include "tokenizer/utf8.h"

#include <simdjson.h>

#include <algorithm>

namespace nibble::tokenizer {
namespace {

/// Length of a sequence by its lead byte and what its second byte may be (Unicode 15, table 3-7); 0: no lead byte.
struct Sequence {
  std::size_t size_bytes = 0;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

Sequence sequence_of(unsigned char lead) {
  if (lead < 0x80) return {1};
  if (lead < 0xC2) return {0};
  if (lead < 0xE0) return {2};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};  // surrogates
  if (lead < 0xF0) return {3};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4};
  if (lead == 0xF4) return {4, 0x80, 0x8F};  // beyond U+10FFFF
  return {0};
}

/// How many bytes at the start of `bytes` are the beginning of one character, and whether they complete it.
struct Prefix {
  std::size_t size_bytes = 0;
  bool is_complete = false;
};

Prefix character_prefix(std::string_view bytes) {
  const Sequence sequence = sequence_of(static_cast<unsigned char>(bytes.front()));
  if (sequence.size_bytes == 0) return {0, false};
  std::size_t size = 1;
  for (; size < std::min(sequence.size_bytes, bytes.size()); ++size) {
    const auto byte = static_cast<unsigned char>(bytes[size]);
    const unsigned char lowest = size == 1 ? sequence.second_min : 0x80;
    const unsigned char highest = size == 1 ? sequence.second_max : 0xBF;
    if (byte < lowest || byte > highest) return {size, false};
  }
  return {size, size == sequence.size_bytes};
}

}  // namespace

CodePoint decode_utf8_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return decode_utf8(text, begin);
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)); };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | (code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | (code_point >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | (code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

bool is_valid_utf8(std::string_view text) {
  return simdjson::validate_utf8(text.data(), text.size());
}

std::string replace_invalid_utf8(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string text;
  text.reserve(bytes.size() + 16);
  while (!bytes.empty()) {
    const Prefix prefix = character_prefix(bytes);
    const std::size_t consumed = std::max<std::size_t>(prefix.size_bytes, 1);
    if (prefix.is_complete) {
      text.append(bytes.substr(0, consumed));
    } else {
      append_utf8(text, kReplacementCharacter);
    }
    bytes.remove_prefix(consumed);
  }
  return text;
}

std::size_t incomplete_utf8_suffix(std::string_view bytes) {
  for (std::size_t size = 1; size <= std::min<std::size_t>(3, bytes.size()); ++size) {
    const std::string_view suffix = bytes.substr(bytes.size() - size);
    if ((static_cast<unsigned char>(suffix.front()) & 0xC0) == 0x80) continue;
    const Prefix prefix = character_prefix(suffix);
    return prefix.size_bytes == size && !prefix.is_complete ? size : 0;
  }
  return 0;
}

}  // namespace nibble::tokenizer
