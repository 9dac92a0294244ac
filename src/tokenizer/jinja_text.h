#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Python's str operations over UTF-8: positions and lengths count code points, white space and case are Unicode's.
/// Every string here is valid UTF-8.
namespace nibble::tokenizer::jinja::text {

bool is_valid_utf8(std::string_view text);
/// Bytes of the code point that starts at `byte_offset`.
std::size_t char_size(std::string_view text, std::size_t byte_offset);
char32_t code_point_at(std::string_view text, std::size_t byte_offset);
void append(std::string& text, char32_t code_point);
std::size_t count(std::string_view text);
/// Byte offset of code point `index`; the size of the text where it has no more than `index`.
std::size_t byte_offset(std::string_view text, std::size_t index);
std::vector<std::string_view> characters(std::string_view text);

bool is_space(char32_t code_point);
bool is_printable(char32_t code_point);
bool is_alpha(char32_t code_point);
bool is_decimal(char32_t code_point);
bool is_digit(char32_t code_point);
bool is_alnum(char32_t code_point);
/// A combining mark, as identifiers may hold.
bool is_mark(char32_t code_point);
bool is_cased(char32_t code_point);
bool is_lower(char32_t code_point);
bool is_upper(char32_t code_point);

/// Every cased character is lower (upper) case, and there is one.
bool is_all_lower(std::string_view text);
bool is_all_upper(std::string_view text);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
/// First character of each run of letters upper, the rest lower: str.title().
std::string title(std::string_view text);
std::string capitalize(std::string_view text);
std::string swapcase(std::string_view text);

/// As std::string_view's, in linear time whatever the needle.
std::size_t find(std::string_view text, std::string_view part, std::size_t from = 0);
std::size_t rfind(std::string_view text, std::string_view part);

enum class Sides : std::uint8_t { Left = 1, Right = 2, Both = 3 };
/// `characters`: the set to strip; white space where absent.
std::string_view strip(std::string_view text, Sides sides, std::optional<std::string_view> characters = std::nullopt);

constexpr std::int64_t kAllSplits = -1;
/// str.split() at runs of white space, from the left.
std::vector<std::string_view> split_space(std::string_view text, std::int64_t max_splits);
std::vector<std::string_view> rsplit_space(std::string_view text, std::int64_t max_splits);
/// `separator` is not empty.
std::vector<std::string_view> split(std::string_view text, std::string_view separator, std::int64_t max_splits);
std::vector<std::string_view> rsplit(std::string_view text, std::string_view separator, std::int64_t max_splits);
enum class LineEnds : std::uint8_t { Drop, Keep };
std::vector<std::string_view> split_lines(std::string_view text, LineEnds ends);

/// Errors: InvalidArgument where the result would be too long.
std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t max_count);
std::string repeat(std::string_view text, std::int64_t times);
/// Non-overlapping occurrences of `part`.
std::int64_t count_of(std::string_view text, std::string_view part);
/// markupsafe.escape.
std::string escape_html(std::string_view text);

}  // namespace nibble::tokenizer::jinja::text
