#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::tokenizer {

/// Unicode's White_Space, which Rust's char::is_whitespace and Oniguruma's \s test.
bool is_white_space(char32_t code_point);
/// General category N (digits, letter numbers, fractions): Rust's char::is_numeric.
bool is_numeric(char32_t code_point);
/// ASCII punctuation and symbols, and general category P.
bool is_punctuation(char32_t code_point);
/// A letter, mark, decimal digit, connector or joiner: \w.
bool is_word_character(char32_t code_point);

/// First byte behind the white space that begins at `at`.
std::size_t skip_white_space(std::string_view text, std::size_t at);
/// First byte of the white space that ends at `end`, not before `begin`.
std::size_t skip_white_space_back(std::string_view text, std::size_t begin, std::size_t end);

/// Lower case, character by character (no rules that depend on neighbours), as Rust's char::to_lowercase.
std::string lower_case(std::string_view text);

enum class NormalizationForm : std::uint8_t { Nfc, Nfd, Nfkc, Nfkd };

/// Unicode normalization of valid UTF-8, as of Unicode 9 (frozen_unicode.h). Linear in the text but for sorting runs of
/// combining marks (n log n).
std::string normalize(std::string_view text, NormalizationForm form);

}  // namespace nibble::tokenizer
