#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_methods.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

const std::string& text_of(const Value& self) {
  return *self.string();
}

Value list_of(const std::vector<std::string_view>& parts) {
  Items items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.emplace_back(part);
  return Value::list(std::move(items));
}

/// start and end of find, count, startswith …: the byte range of text[start:end]; nullopt where start is past the end.
struct Window {
  std::size_t first;  // code points before it
  std::string_view text;
};
std::optional<Window> window(std::string_view text, const Bound& bound, std::size_t start_idx) {
  const auto size = static_cast<std::int64_t>(text::count(text));
  const auto clamp = [&](std::size_t idx, std::int64_t fallback) {
    std::int64_t position = bound.is_none(idx) ? fallback : bound.integer(idx, fallback);
    if (position < 0) position = std::max<std::int64_t>(0, position + size);
    return position;
  };
  const std::int64_t start = clamp(start_idx, 0);
  const std::int64_t end = std::min(clamp(start_idx + 1, size), size);
  if (start > end) return std::nullopt;
  const std::size_t first = text::byte_offset(text, static_cast<std::size_t>(start));
  const std::string_view rest = text.substr(first);
  return Window{static_cast<std::size_t>(start),
                rest.substr(0, text::byte_offset(rest, static_cast<std::size_t>(end - start)))};
}

template <std::string (*function)(std::string_view)>
Value map_text(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  return function(text_of(self));
}

template <text::Sides sides>
Value strip(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("strip", arguments, {"/chars"});
  if (bound.is_none(0)) return Value(text::strip(text_of(self), sides));
  return Value(text::strip(text_of(self), sides, bound.text(0)));
}

enum class Direction : std::uint8_t { Left, Right };

template <Direction direction>
Value split(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("split", arguments, {"sep", "maxsplit"});
  const std::int64_t max_splits = bound.integer(1, text::kAllSplits);
  constexpr bool is_left = direction == Direction::Left;
  if (bound.is_none(0)) {
    return list_of(is_left ? text::split_space(text_of(self), max_splits)
                           : text::rsplit_space(text_of(self), max_splits));
  }
  const std::string separator = bound.text(0);
  if (separator.empty()) fail("empty separator");
  return list_of(is_left ? text::split(text_of(self), separator, max_splits)
                         : text::rsplit(text_of(self), separator, max_splits));
}

template <Direction direction>
Value partition(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("partition", arguments, {"/sep"}, 1);
  const std::string separator = bound.text(0);
  if (separator.empty()) fail("empty separator");
  const std::string_view text = text_of(self);
  constexpr bool is_left = direction == Direction::Left;
  const std::size_t found = is_left ? text::find(text, separator) : text::rfind(text, separator);
  if (found == std::string_view::npos) {
    return is_left ? Value::tuple({Value(text), Value(""), Value("")})
                   : Value::tuple({Value(""), Value(""), Value(text)});
  }
  return Value::tuple({Value(text.substr(0, found)), Value(separator), Value(text.substr(found + separator.size()))});
}

Value split_lines(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("splitlines", arguments, {"keepends"});
  return list_of(text::split_lines(text_of(self), bound.flag(0, false) ? text::LineEnds::Keep : text::LineEnds::Drop));
}

template <bool (*matches)(std::string_view, std::string_view)>
Value match_affix(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("startswith", arguments, {"/prefix", "/start", "/end"}, 1);
  const auto range = window(text_of(self), bound, 1);
  const Value wanted = bound.value(0);
  const auto* choices = wanted.get<Tuple>();
  if (choices == nullptr) {
    const std::string affix = bound.text(0);
    return range.has_value() && matches(range->text, affix);
  }
  for (const Value& choice : choices->items) {
    if (!choice.is_string()) fail("tuple for startswith must only contain str");
    if (range.has_value() && matches(range->text, *choice.string())) return true;
  }
  return false;
}

bool starts_with(std::string_view text, std::string_view affix) {
  return text.starts_with(affix);
}
bool ends_with(std::string_view text, std::string_view affix) {
  return text.ends_with(affix);
}

/// Position in code points, -1 where `part` is not there.
template <Direction direction>
std::int64_t position_of(const Value& self, Arguments& arguments) {
  const Bound bound("find", arguments, {"/sub", "/start", "/end"}, 1);
  const std::string part = bound.text(0);
  const auto range = window(text_of(self), bound, 1);
  if (!range) return -1;
  const std::size_t found =
      direction == Direction::Left ? text::find(range->text, part) : text::rfind(range->text, part);
  if (found == std::string_view::npos) return -1;
  return static_cast<std::int64_t>(range->first + text::count(range->text.substr(0, found)));
}

template <Direction direction>
Value find(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  return position_of<direction>(self, arguments);
}

template <Direction direction>
Value index(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const std::int64_t position = position_of<direction>(self, arguments);
  if (position < 0) fail("substring not found");
  return position;
}

Value count(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("count", arguments, {"/sub", "/start", "/end"}, 1);
  const auto range = window(text_of(self), bound, 1);
  return range ? text::count_of(range->text, bound.text(0)) : 0;
}

Value replace(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("replace", arguments, {"/old", "/new", "/count"}, 2);
  return text::replace(text_of(self), bound.text(0), bound.text(1), bound.integer(2, -1));
}

Value remove_prefix(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("removeprefix", arguments, {"/prefix"}, 1);
  const std::string prefix = bound.text(0);
  const std::string_view text = text_of(self);
  return Value(text.starts_with(prefix) ? text.substr(prefix.size()) : text);
}

Value remove_suffix(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("removesuffix", arguments, {"/suffix"}, 1);
  const std::string suffix = bound.text(0);
  const std::string_view text = text_of(self);
  return Value(text.ends_with(suffix) ? text.substr(0, text.size() - suffix.size()) : text);
}

Value join(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  const Bound bound("join", arguments, {"/iterable"}, 1);
  std::string joined;
  bool is_first = true;
  for (const Value& item : interpreter.collect(bound.value(0))) {
    if (!item.is_string()) fail(fmt::format("sequence item: expected str instance, {} found", type_name(item)));
    if (!is_first) joined += text_of(self);
    is_first = false;
    joined += *item.string();
    check_string_size(joined.size());
  }
  return joined;
}

template <bool (*holds)(char32_t)>
Value all_characters(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  const std::string& text = text_of(self);
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    if (!holds(text::code_point_at(text, i))) return false;
  }
  return !text.empty();
}

bool is_ascii(char32_t c) {
  return c < 0x80;
}

template <bool (*holds)(std::string_view)>
Value whole_text(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  return holds(text_of(self));
}

Value is_title(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("istitle", arguments, {});
  const std::string& text = text_of(self);
  bool has_cased = false;
  bool follows_cased = false;
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    const char32_t c = text::code_point_at(text, i);
    if (text::is_cased(c) && text::is_lower(c) != follows_cased) return false;
    follows_cased = text::is_cased(c);
    has_cased |= follows_cased;
  }
  return has_cased;
}

enum class Justify : std::uint8_t { Left, Right, Center };

template <Justify justify>
Value justified(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("center", arguments, {"/width", "/fillchar"}, 1);
  const std::string fill = bound.has(1) ? bound.text(1) : " ";
  if (text::count(fill) != 1) fail("The fill character must be exactly one character long");
  const std::string& text = text_of(self);
  const std::int64_t width = bound.integer(0, 0);
  const std::int64_t missing = width - static_cast<std::int64_t>(text::count(text));
  if (missing <= 0) return text;
  // CPython's rule for an odd rest.
  const std::int64_t center = missing / 2 + (missing & width & 1);
  const std::int64_t left = justify == Justify::Left ? 0 : justify == Justify::Right ? missing : center;
  return text::repeat(fill, left) + text + text::repeat(fill, missing - left);
}

Value zfill(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("zfill", arguments, {"/width"}, 1);
  const std::string& text = text_of(self);
  const std::int64_t missing = bound.integer(0, 0) - static_cast<std::int64_t>(text::count(text));
  const std::size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return text.substr(0, sign) + text::repeat("0", missing) + text.substr(sign);
}

Value expand_tabs(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("expandtabs", arguments, {"tabsize"});
  const std::int64_t tab_size = bound.integer(0, 8);
  const std::string& text = text_of(self);
  std::string result;
  std::int64_t column = 0;
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    if (text[i] == '\t') {
      const std::int64_t width = tab_size > 0 ? tab_size - column % tab_size : 0;
      result += text::repeat(" ", width);
      column += width;
      check_string_size(result.size());
    } else {
      result.append(text, i, text::char_size(text, i));
      column = text[i] == '\n' || text[i] == '\r' ? 0 : column + 1;
    }
  }
  return result;
}

Value format(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  return format_braces(text_of(self), arguments);
}

Value format_map(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("format_map", arguments, {"/mapping"}, 1);
  const Value mapping = bound.value(0);
  const auto* dict = mapping.get<Dict>();
  if (dict == nullptr) fail("format_map() needs a mapping");
  Arguments named;
  for (const auto& [key, value] : dict->entries()) {
    if (key.is_string()) named.keyword.emplace_back(*key.string(), value);
  }
  return format_braces(text_of(self), named);
}

constexpr auto kStringMethods = std::to_array<Method>({
    {"capitalize", map_text<text::capitalize>},
    {"casefold", map_text<text::lower>},
    {"center", justified<Justify::Center>},
    {"count", count},
    {"endswith", match_affix<ends_with>},
    {"expandtabs", expand_tabs},
    {"find", find<Direction::Left>},
    {"format", format},
    {"format_map", format_map},
    {"index", index<Direction::Left>},
    {"isalnum", all_characters<text::is_alnum>},
    {"isalpha", all_characters<text::is_alpha>},
    {"isascii", all_characters<is_ascii>},
    {"isdecimal", all_characters<text::is_decimal>},
    {"isdigit", all_characters<text::is_digit>},
    {"islower", whole_text<text::is_all_lower>},
    {"isspace", all_characters<text::is_space>},
    {"istitle", is_title},
    {"isupper", whole_text<text::is_all_upper>},
    {"join", join},
    {"ljust", justified<Justify::Left>},
    {"lower", map_text<text::lower>},
    {"lstrip", strip<text::Sides::Left>},
    {"partition", partition<Direction::Left>},
    {"removeprefix", remove_prefix},
    {"removesuffix", remove_suffix},
    {"replace", replace},
    {"rfind", find<Direction::Right>},
    {"rindex", index<Direction::Right>},
    {"rjust", justified<Justify::Right>},
    {"rpartition", partition<Direction::Right>},
    {"rsplit", split<Direction::Right>},
    {"rstrip", strip<text::Sides::Right>},
    {"split", split<Direction::Left>},
    {"splitlines", split_lines},
    {"startswith", match_affix<starts_with>},
    {"strip", strip<text::Sides::Both>},
    {"swapcase", map_text<text::swapcase>},
    {"title", map_text<text::title>},
    {"upper", map_text<text::upper>},
    {"zfill", zfill},
});

}  // namespace

std::optional<Value> find_string_method(const Value& self, std::string_view name) {
  return bind_method(kStringMethods, self, name);
}

}  // namespace nibble::tokenizer::jinja
