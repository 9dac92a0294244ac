#include "tokenizer/jinja_filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

// Filters of single values. Those of sequences are in jinja_sequence_filters.cpp.
namespace nibble::tokenizer::jinja {
namespace {

/// str(value), its cost charged.
std::string text_of(Interpreter& interpreter, const Value& value) {
  interpreter.charge(extent(value).weight);
  return to_string(value);
}

template <std::string (*function)(std::string_view)>
Value map_text(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("filter", arguments, {});
  return function(text_of(interpreter, subject));
}

/// Words start after white space, hyphens and opening brackets only: not str.title().
std::string title_words(std::string_view text) {
  std::string result;
  bool is_word_start = true;
  const auto breaks_word = [](char32_t c) {
    return text::is_space(c) || std::u32string_view(U"-({[<").find(c) != std::u32string_view::npos;
  };
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t size = text::char_size(text, i);
    const bool is_break = breaks_word(text::code_point_at(text, i));
    if (is_break) {
      result += text.substr(i, size);
      i += size;
    } else if (is_word_start) {
      result += text::upper(text.substr(i, size));
      i += size;
    } else {
      std::size_t end = i;
      while (end < text.size() && !breaks_word(text::code_point_at(text, end))) end += text::char_size(text, end);
      result += text::lower(text.substr(i, end - i));
      i = end;
    }
    is_word_start = is_break;
  }
  return result;
}

Value trim(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("trim", arguments, {"chars"});
  const std::string text = text_of(interpreter, subject);
  if (bound.is_none(0)) return Value(text::strip(text, text::Sides::Both));
  return Value(text::strip(text, text::Sides::Both, bound.text(0)));
}

Value replace(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const std::int64_t count = bound.is_none(2) ? -1 : bound.integer(2, -1);
  return text::replace(text_of(interpreter, subject), text_of(interpreter, bound.value(0)),
                       text_of(interpreter, bound.value(1)), count);
}

Value center(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("center", arguments, {"width"});
  const Value text(text_of(interpreter, subject));
  return interpreter.call(get_attribute(text, "center"), {{Value(bound.integer(0, 80))}, {}});
}

Value indent(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("indent", arguments, {"width", "first", "blank"});
  if (!subject.is_string()) fail(fmt::format("indent needs a string, not {}", type_name(subject)));
  const bool is_text_width = bound.has(0) && bound.value(0).is_string();
  const std::string indention = is_text_width ? bound.text(0) : text::repeat(" ", bound.integer(0, 4));
  const std::string text = *subject.string() + "\n";  // jinja2's own quirk, for splitlines
  const auto lines = text::split_lines(text, text::LineEnds::Drop);
  check_string_size(lines.size() * static_cast<std::uint64_t>(indention.size()) + text.size());
  std::string result = bound.flag(1, false) ? indention : "";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) result += '\n';
    if (i > 0 && (bound.flag(2, false) || !lines[i].empty())) result += indention;
    result += lines[i];
  }
  interpreter.charge(result.size() / 32);
  return subject.is_markup() ? Value::markup(std::move(result)) : Value(std::move(result));
}

Value truncate(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
  if (!subject.is_string()) fail(fmt::format("truncate needs a string, not {}", type_name(subject)));
  const std::string end = bound.has(2) ? bound.text(2) : "...";
  const std::int64_t limit = bound.integer(0, 255);
  const std::int64_t leeway = bound.is_none(3) ? 5 : bound.integer(3, 5);
  const auto end_size = static_cast<std::int64_t>(text::count(end));
  if (limit < end_size || leeway < 0) fail(fmt::format("expected length >= {}, got {}", end_size, limit));
  const std::string_view text = *subject.string();
  if (static_cast<std::int64_t>(text::count(text)) <= limit + leeway) return subject;
  std::string_view kept = text.substr(0, text::byte_offset(text, static_cast<std::size_t>(limit - end_size)));
  if (!bound.flag(1, false)) kept = kept.substr(0, kept.rfind(' '));
  return std::string(kept) + end;
}

Value word_count(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("wordcount", arguments, {});
  const std::string text = text_of(interpreter, subject);
  std::int64_t words = 0;
  bool is_inside = false;
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    const char32_t c = text::code_point_at(text, i);
    const bool is_word = text::is_alnum(c) || c == '_';
    if (is_word && !is_inside) ++words;
    is_inside = is_word;
  }
  return words;
}

Value url_encode(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("urlencode", arguments, {});
  const auto quote = [&](const Value& value, bool is_query) {
    std::string quoted;
    for (const char c : text_of(interpreter, value)) {
      const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
                            c == '.' || c == '-' || c == '~' || (c == '/' && !is_query);
      if (is_plain) {
        quoted += c;
      } else if (c == ' ' && is_query) {
        quoted += '+';
      } else {
        quoted += fmt::format("%{:02X}", static_cast<unsigned char>(c));
      }
    }
    return quoted;
  };
  if (subject.is_string() || !is_iterable(subject)) return quote(subject, false);
  const auto* dict = subject.get<Dict>();
  const Value pairs = dict == nullptr ? subject : interpreter.call(get_attribute(subject, "items"), {});
  std::string query;
  for (const Value& pair : interpreter.collect(pairs)) {
    const Items items = interpreter.collect(pair);
    if (items.size() != 2) fail("urlencode needs pairs");
    if (!query.empty()) query += '&';
    query += quote(items[0], true) + "=" + quote(items[1], true);
  }
  return query;
}

Value default_value(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("default", arguments, {"default_value", "boolean"});
  const bool is_missing = subject.is_undefined() || (bound.flag(1, false) && !is_truthy(subject));
  if (!is_missing) return subject;
  return bound.has(0) ? bound.value(0) : Value("");
}

/// int("…", base) of Python; nullopt where it raises ValueError.
std::optional<std::int64_t> parse_integer(std::string_view text, int base) {
  text = text::strip(text, text::Sides::Both);
  bool is_negative = false;
  if (text.starts_with('-') || text.starts_with('+')) {
    is_negative = text[0] == '-';
    text.remove_prefix(1);
  }
  const char mark = text.size() > 1 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : ' ';
  const int marked_base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked_base != 0 && (base == marked_base || base == 0)) {
    base = marked_base;
    text.remove_prefix(2);
    if (text.starts_with('_')) text.remove_prefix(1);
  }
  if (base == 0) base = 10;
  std::string digits;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      digits += text[i];
    } else if (i == 0 || i + 1 == text.size() || text[i + 1] == '_') {
      return std::nullopt;
    }
  }
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  std::int64_t number = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), number, base);
  if (parsed.ptr != digits.data() + digits.size()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) fail("an integer does not fit 64 bits");
  return is_negative ? -number : number;
}

/// float("…") of Python; nullopt where it raises ValueError.
std::optional<double> parse_float(std::string_view text) {
  text = text::strip(text, text::Sides::Both);
  if (text.starts_with('+')) text.remove_prefix(1);
  std::string digits;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto is_digit_at = [&](std::size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '9'; };
    if (text[i] != '_') {
      digits += text[i];
    } else if (i == 0 || !is_digit_at(i - 1) || !is_digit_at(i + 1)) {
      return std::nullopt;
    }
  }
  if (digits.find('(') != std::string::npos || digits.empty()) return std::nullopt;  // from_chars knows "nan(1)"
  double number = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (parsed.ptr != digits.data() + digits.size()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) return digits.find("e-") == std::string::npos ? HUGE_VAL : 0.0;
  return number;
}

std::optional<std::int64_t> truncated(double number) {
  if (!std::isfinite(number)) return std::nullopt;
  if (std::fabs(number) >= 0x1p63) fail("an integer does not fit 64 bits");
  return static_cast<std::int64_t>(number);
}

Value to_int(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("int", arguments, {"default", "base"});
  const Value fallback = bound.has(0) ? bound.value(0) : Value(0);
  if (const auto* missing = subject.get<Undefined>()) fail(missing->message);
  if (const auto whole = subject.integer()) return *whole;
  if (const auto number = subject.number()) {
    if (std::isinf(*number)) fail("cannot convert float infinity to integer");
    const auto whole = truncated(*number);
    return whole ? Value(*whole) : fallback;
  }
  if (!subject.is_string()) return fallback;
  const std::int64_t base = bound.integer(1, 10);
  if (base != 0 && (base < 2 || base > 36)) return fallback;
  if (const auto whole = parse_integer(*subject.string(), static_cast<int>(base))) return *whole;
  const auto number = parse_float(*subject.string());
  const auto whole = number ? truncated(*number) : std::nullopt;
  return whole ? Value(*whole) : fallback;
}

Value to_float(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("float", arguments, {"default"});
  if (const auto* missing = subject.get<Undefined>()) fail(missing->message);
  if (const auto number = subject.number()) return *number;
  if (subject.is_string()) {
    if (const auto number = parse_float(*subject.string())) return *number;
  }
  return bound.has(0) ? bound.value(0) : Value(0.0);
}

Value absolute(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("abs", arguments, {});
  if (const auto whole = subject.integer()) return *whole < 0 ? apply(UnaryOperator::Minus, subject) : Value(*whole);
  if (const auto number = subject.number()) return std::fabs(*number);
  fail(fmt::format("bad operand type for abs(): '{}'", type_name(subject)));
}

/// Python's round(): half to even, on the decimal value that the digits would print.
double round_half_even(double number, std::int64_t precision) {
  if (!std::isfinite(number) || precision > 300) return number;
  if (precision < -300) return 0.0;
  if (precision >= 0) {
    const std::string text = fmt::format("{:.{}f}", number, precision);
    double rounded = 0;
    std::from_chars(text.data(), text.data() + text.size(), rounded);
    return rounded;
  }
  const double scale = std::pow(10.0, static_cast<double>(-precision));
  return std::nearbyint(number / scale) * scale;
}

Value round(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("round", arguments, {"precision", "method"});
  const std::string method = bound.has(1) ? bound.text(1) : "common";
  const std::int64_t precision = bound.integer(0, 0);
  const auto number = subject.number();
  if (const auto* missing = subject.get<Undefined>()) fail(missing->message);
  if (!number) fail(fmt::format("type {} doesn't define __round__ method", type_name(subject)));
  if (method == "common") {
    if (subject.integer() && precision >= 0) return *subject.integer();
    const double rounded = round_half_even(*number, precision);
    return subject.integer() ? Value(static_cast<std::int64_t>(rounded)) : Value(rounded);
  }
  if (method != "ceil" && method != "floor") fail("method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = *number * scale;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

Value to_json_filter(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound.flag(0, false);
  style.sort_keys = bound.flag(3, false);
  if (!bound.is_none(1)) {
    style.is_indented = true;
    style.indent = bound.value(1).is_string() ? bound.text(1) : text::repeat(" ", bound.integer(1, 0));
    style.item_separator = ",";
    constexpr std::size_t kMaxIndent = 1000;
    if (style.indent.size() > kMaxIndent) fail("tojson: an indent of more than 1000 characters is refused");
  }
  if (!bound.is_none(2)) {
    const Items separators = interpreter.collect(bound.value(2));
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      fail("tojson: separators must be two strings");
    }
    style.item_separator = *separators[0].string();
    style.key_separator = *separators[1].string();
  }
  interpreter.charge(extent(subject).weight);
  return to_json(subject, style);
}

Value safe(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("safe", arguments, {});
  return Value::markup(text_of(interpreter, subject));
}

Value escape(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("escape", arguments, {});
  return subject.is_markup() ? subject : Value::markup(text::escape_html(text_of(interpreter, subject)));
}

Value force_escape(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("forceescape", arguments, {});
  return Value::markup(text::escape_html(text_of(interpreter, subject)));
}

Value string(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("string", arguments, {});
  return subject.is_string() ? subject : Value(text_of(interpreter, subject));
}

Value format(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.keyword.empty()) {
    fail("can't handle positional and keyword arguments at the same time");
  }
  const std::string text = text_of(interpreter, subject);
  if (arguments.keyword.empty()) return format_percent(text, Value::tuple(arguments.positional));
  std::vector<Dict::Entry> entries;
  for (auto& [name, value] : arguments.keyword) entries.push_back({Value(name), value});
  return format_percent(text, Ref<Dict>(std::make_shared<const Dict>(std::move(entries))));
}

Value attribute(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("attr", arguments, {"name"}, 1);
  const std::string name = bound.text(0);
  if (const auto* missing = subject.get<Undefined>()) fail(missing->message);
  // Attributes only: a dict's keys do not count.
  if (Object* object = subject.object()) {
    if (auto found = object->attribute(name)) return *std::move(found);
  } else if (auto method = find_method(subject, name)) {
    return *std::move(method);
  }
  return Value::undefined(fmt::format("'{} object' has no attribute '{}'", type_name(subject), name));
}

constexpr auto kValueFilters = std::to_array<FilterRow>({
    {"abs", absolute},
    {"attr", attribute},
    {"capitalize", map_text<text::capitalize>},
    {"center", center},
    {"d", default_value},
    {"default", default_value},
    {"e", escape},
    {"escape", escape},
    {"float", to_float},
    {"forceescape", force_escape},
    {"format", format},
    {"indent", indent},
    {"int", to_int},
    {"lower", map_text<text::lower>},
    {"replace", replace},
    {"round", round},
    {"safe", safe},
    {"string", string},
    {"title", map_text<title_words>},
    {"tojson", to_json_filter},
    {"trim", trim},
    {"truncate", truncate},
    {"upper", map_text<text::upper>},
    {"urlencode", url_encode},
    {"wordcount", word_count},
});

}  // namespace

FilterFunction find_filter(std::string_view name) {
  for (const std::span<const FilterRow> rows : {std::span<const FilterRow>(kValueFilters), sequence_filters()}) {
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const FilterRow& row) { return row.name == name; });
    if (found != rows.end()) return found->function;
  }
  return nullptr;
}

}  // namespace nibble::tokenizer::jinja
