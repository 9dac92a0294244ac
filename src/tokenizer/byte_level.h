#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble::tokenizer {

/// The GPT-2 alphabet: every byte as a visible character, ' ' as 'Ġ' (openai/gpt-2 src/encoder.py, bytes_to_unicode).
char32_t byte_level_character(std::uint8_t byte);

/// `bytes` written in that alphabet.
std::string to_byte_level(std::string_view bytes);

/// The bytes that `text` (valid UTF-8) stands for; nullopt where a character is not in the alphabet.
std::optional<std::string> from_byte_level(std::string_view text);

}  // namespace nibble::tokenizer
