#include "tokenizer/jinja_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "tokenizer/jinja_operators.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

constexpr std::int64_t kMaxWidth = 100'000;

/// One conversion, from either syntax: [[fill]align][sign][#][0][width][,][.precision][type].
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '=' or 0: the type's own
  char sign = '-';
  bool is_alternate = false;
  bool groups_thousands = false;
  std::int64_t width = 0;
  std::int64_t precision = -1;
  char type = 0;
};

std::int64_t parse_number(std::string_view text, std::size_t& at) {
  std::int64_t number = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    number = number * 10 + (text[at++] - '0');
    if (number > kMaxWidth) fail(fmt::format("a format width or precision beyond {} is refused", kMaxWidth));
  }
  return number;
}

std::string pad(std::string body, const Spec& spec, char default_align) {
  const auto size = static_cast<std::int64_t>(text::count(body));
  if (size >= spec.width) return body;
  const std::int64_t missing = spec.width - size;
  const char align = spec.align != 0 ? spec.align : default_align;
  const std::int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  const std::string left_fill = text::repeat(spec.fill, left);
  if (align == '=') {  // between sign and digits
    const std::size_t sign = !body.empty() && (body[0] == '-' || body[0] == '+' || body[0] == ' ') ? 1 : 0;
    return body.substr(0, sign) + left_fill + body.substr(sign);
  }
  return left_fill + body + text::repeat(spec.fill, missing - left);
}

std::string with_thousands(std::string digits) {
  const std::size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (std::size_t at = end; at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

std::string sign_text(bool is_negative, char sign) {
  if (is_negative) return "-";
  return sign == '-' ? "" : std::string(1, sign);
}

std::string format_integer(std::int64_t number, const Spec& spec) {
  const std::uint64_t size = number < 0 ? 0 - static_cast<std::uint64_t>(number) : static_cast<std::uint64_t>(number);
  std::string digits;
  switch (spec.type) {
    case 'x': digits = (spec.is_alternate ? "0x" : "") + fmt::format("{:x}", size); break;
    case 'X': digits = (spec.is_alternate ? "0X" : "") + fmt::format("{:X}", size); break;
    case 'o': digits = (spec.is_alternate ? "0o" : "") + fmt::format("{:o}", size); break;
    case 'b': digits = (spec.is_alternate ? "0b" : "") + fmt::format("{:b}", size); break;
    default: digits = std::to_string(size);
  }
  if (spec.groups_thousands) digits = with_thousands(std::move(digits));
  return pad(sign_text(number < 0, spec.sign) + digits, spec, '>');
}

std::string format_float(double number, const Spec& spec) {
  const double size = std::fabs(number);
  std::string digits;
  if (!std::isfinite(number)) {
    digits = std::isnan(number) ? "nan" : "inf";
  } else {
    const int precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
    switch (spec.type) {
      case 'f':
      case 'F': digits = fmt::format("{:.{}f}", size, precision); break;
      case 'e': digits = fmt::format("{:.{}e}", size, precision); break;
      case 'E': digits = fmt::format("{:.{}E}", size, precision); break;
      case '%': digits = fmt::format("{:.{}f}%", size * 100, precision); break;
      case 'G': digits = fmt::format("{:.{}G}", size, std::max(precision, 1)); break;
      case 'g': digits = fmt::format("{:.{}g}", size, std::max(precision, 1)); break;
      default:
        if (spec.precision < 0) {
          digits = repr(size);
        } else {
          digits = fmt::format("{:.{}g}", size, std::max(precision, 1));
          if (digits.find_first_of(".e") == std::string::npos) digits += ".0";
        }
    }
  }
  if (spec.groups_thousands) digits = with_thousands(std::move(digits));
  return pad(sign_text(std::signbit(number), spec.sign) + digits, spec, '>');
}

std::string format_text(std::string_view text, const Spec& spec) {
  if (spec.precision >= 0) text = text.substr(0, text::byte_offset(text, static_cast<std::size_t>(spec.precision)));
  return pad(std::string(text), spec, '<');
}

class PercentFormatter {
 public:
  PercentFormatter(std::string_view text, const Value& values) : text_(text), values_(values) {}

  std::string run() {
    std::string out;
    while (at_ < text_.size()) {
      if (text_[at_] != '%') {
        out += text_[at_++];
        continue;
      }
      ++at_;
      out += convert();
      check_string_size(out.size());
    }
    // A dict, a list, a range or an Undefined may stay unused: they have [], so Python takes them for mappings.
    const auto* tuple = values_.get<Tuple>();
    const bool may_stay = values_.is_undefined() || values_.get<Dict>() != nullptr || values_.get<List>() != nullptr ||
                          values_.get<Range>() != nullptr;
    if (!may_stay && next_ < (tuple != nullptr ? tuple->items.size() : 1)) {
      fail("not all arguments converted during string formatting");
    }
    return out;
  }

 private:
  char peek() const {
    if (at_ >= text_.size()) fail("incomplete format");
    return text_[at_];
  }
  Value take_argument() {
    const auto* tuple = values_.get<Tuple>();
    if (next_ >= (tuple != nullptr ? tuple->items.size() : 1)) fail("not enough arguments for format string");
    ++next_;
    return tuple != nullptr ? tuple->items[next_ - 1] : values_;
  }
  Value named_argument() {
    const std::size_t end = text_.find(')', at_);
    if (end == std::string_view::npos) fail("incomplete format key");
    const auto* dict = values_.get<Dict>();
    if (dict == nullptr) fail("format requires a mapping");
    const std::string_view key = text_.substr(at_, end - at_);
    const Value* found = dict->find(key);
    if (found == nullptr) fail(fmt::format("the format names a missing key {}", repr(key)));
    at_ = end + 1;
    return *found;
  }
  std::int64_t size_argument() {
    if (peek() != '*') return parse_number(text_, at_);
    ++at_;
    const auto whole = take_argument().integer();
    if (!whole || *whole < 0 || *whole > kMaxWidth) fail("* wants a small int");
    return *whole;
  }
  std::string convert();
  static std::string convert_value(const Value& value, Spec spec);

  std::string_view text_;
  const Value& values_;
  std::size_t at_ = 0;
  std::size_t next_ = 0;
};

std::string PercentFormatter::convert() {
  Spec spec;
  spec.align = '>';
  std::optional<Value> named;
  if (peek() == '(') {
    ++at_;
    named = named_argument();
  }
  bool fills_zero = false;
  for (; std::string_view("-+ #0").find(peek()) != std::string_view::npos; ++at_) {
    if (peek() == '-') spec.align = '<';
    if (peek() == '+' || (peek() == ' ' && spec.sign != '+')) spec.sign = peek();
    if (peek() == '#') spec.is_alternate = true;
    if (peek() == '0') fills_zero = true;
  }
  spec.width = size_argument();
  if (peek() == '.') {
    ++at_;
    spec.precision = size_argument();
  }
  while (std::string_view("hlL").find(peek()) != std::string_view::npos) ++at_;
  spec.type = peek();
  ++at_;
  if (spec.type == '%') return "%";
  const bool is_numeric = std::string_view("srac").find(spec.type) == std::string_view::npos;
  if (fills_zero && is_numeric && spec.align != '<') {
    spec.fill = "0";
    spec.align = '=';
  }
  return convert_value(named ? *named : take_argument(), spec);
}

std::string PercentFormatter::convert_value(const Value& value, Spec spec) {
  switch (spec.type) {
    case 's': return format_text(to_string(value), spec);
    case 'r': return format_text(repr(value), spec);
    case 'd':
    case 'i':
    case 'u': {
      const auto number = value.number();
      if (!number) fail(fmt::format("%{} format: a real number is required, not {}", spec.type, type_name(value)));
      if (std::fabs(*number) >= 0x1p63) fail("a number does not fit 64 bits");
      spec.type = 'd';
      return format_integer(value.integer().value_or(static_cast<std::int64_t>(*number)), spec);
    }
    case 'x':
    case 'X':
    case 'o': {
      const auto whole = value.integer();
      if (!whole) fail(fmt::format("%{} format: an integer is required, not {}", spec.type, type_name(value)));
      return format_integer(*whole, spec);
    }
    case 'c': {
      const auto whole = value.integer();
      std::string character;
      if (whole && *whole >= 0 && *whole <= 0x10FFFF && (*whole < 0xD800 || *whole > 0xDFFF)) {
        text::append(character, static_cast<char32_t>(*whole));
      } else if (value.is_string() && text::count(*value.string()) == 1) {
        character = *value.string();
      } else {
        fail("%c requires int or char");
      }
      return format_text(character, spec);
    }
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': {
      const auto number = value.number();
      if (!number) fail(fmt::format("must be real number, not {}", type_name(value)));
      return format_float(*number, spec);
    }
    default: fail(fmt::format("unsupported format character '{}'", spec.type));
  }
}

Spec parse_spec(std::string_view text) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    const std::size_t first = text::char_size(text, 0);
    if (first < text.size() && is_align(text[first])) {
      spec.fill = text.substr(0, first);
      spec.align = text[first];
      at = first + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      at = 1;
    }
  }
  const auto skip = [&](char c) { return at < text.size() && text[at] == c ? (++at, true) : false; };
  if (at < text.size() && (text[at] == '+' || text[at] == '-' || text[at] == ' ')) spec.sign = text[at++];
  spec.is_alternate = skip('#');
  if (skip('0') && spec.align == 0) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = parse_number(text, at);
  spec.groups_thousands = skip(',');
  if (skip('.')) spec.precision = parse_number(text, at);
  if (at < text.size()) spec.type = text[at++];
  if (at != text.size()) fail(fmt::format("Invalid format specifier '{}'", text));
  return spec;
}

std::string format_value(const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) return to_string(value);
  const Spec spec = parse_spec(spec_text);
  const bool wants_float = std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos && spec.type != 0;
  if (const auto whole = value.integer(); whole && !wants_float) {
    if (spec.type != 0 && std::string_view("dxXobn").find(spec.type) == std::string_view::npos) {
      fail(fmt::format("Unknown format code '{}' for object of type 'int'", spec.type));
    }
    return format_integer(*whole, spec);
  }
  if (const auto number = value.number()) {
    if (!wants_float && spec.type != 0 && spec.type != 'n') {
      fail(fmt::format("Unknown format code '{}' for object of type 'float'", spec.type));
    }
    return format_float(*number, spec);
  }
  const std::string* text = value.string();
  if (text == nullptr) fail(fmt::format("unsupported format string passed to {}.__format__", type_name(value)));
  if (spec.type != 0 && spec.type != 's') {
    fail(fmt::format("Unknown format code '{}' for object of type 'str'", spec.type));
  }
  if (spec.align == '=') fail("'=' alignment not allowed in string format specifier");
  return format_text(*text, spec);
}

class BraceFormatter {
 public:
  explicit BraceFormatter(const Arguments& arguments) : arguments_(arguments) {}

  std::string run(std::string_view text, int depth = 0) {
    if (depth > 2) fail("Max string recursion exceeded");
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
      const char c = text[at];
      if ((c == '{' || c == '}') && at + 1 < text.size() && text[at + 1] == c) {
        out += c;
        at += 2;
      } else if (c == '}') {
        fail("Single '}' encountered in format string");
      } else if (c == '{') {
        const std::size_t end = field_end(text, at + 1);
        out += field(text.substr(at + 1, end - at - 1), depth);
        at = end + 1;
        check_string_size(out.size());
      } else {
        out += c;
        ++at;
      }
    }
    return out;
  }

 private:
  static std::size_t field_end(std::string_view text, std::size_t at) {
    for (int open = 1; at < text.size(); ++at) {
      if (text[at] == '{') ++open;
      if (text[at] == '}' && --open == 0) return at;
    }
    fail("expected '}' before end of string");
  }

  std::string field(std::string_view content, int depth) {
    const std::size_t colon = content.find(':');
    std::string_view name = content.substr(0, colon);
    const std::string spec = colon == std::string_view::npos ? "" : run(content.substr(colon + 1), depth + 1);
    char conversion = 0;
    if (const std::size_t mark = name.find('!'); mark != std::string_view::npos) {
      if (mark + 2 != name.size()) fail("expected ':' after conversion specifier");
      conversion = name[mark + 1];
      name = name.substr(0, mark);
    }
    const Value value = look_up(name);
    if (conversion == 0) return format_value(value, spec);
    if (conversion == 's') return format_value(Value(to_string(value)), spec);
    if (conversion == 'r') return format_value(Value(repr(value)), spec);
    fail(fmt::format("Unknown conversion specifier {}", conversion));
  }

  Value look_up(std::string_view name) {
    const std::size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = argument(name.substr(0, end));
    for (std::string_view rest = name.substr(end); !rest.empty();) {
      if (rest[0] == '.') {
        const std::size_t stop = std::min(rest.find_first_of(".[", 1), rest.size());
        value = get_attribute(value, rest.substr(1, stop - 1));
        rest.remove_prefix(stop);
      } else {
        const std::size_t stop = rest.find(']');
        if (rest[0] != '[' || stop == std::string_view::npos) fail("Missing ']' in format string");
        value = get_item(value, key(rest.substr(1, stop - 1)));
        rest.remove_prefix(stop + 1);
      }
    }
    return value;
  }

  static Value key(std::string_view text) {
    std::int64_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool is_number = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && text[0] != '-';
    return is_number ? Value(number) : Value(text);
  }

  Value argument(std::string_view name) {
    const Value wanted = name.empty() ? Value(static_cast<std::int64_t>(next_++)) : key(name);
    if (const auto idx = wanted.integer()) {
      if (*idx >= static_cast<std::int64_t>(arguments_.positional.size())) {
        fail(fmt::format("Replacement index {} out of range for positional args tuple", *idx));
      }
      return arguments_.positional[static_cast<std::size_t>(*idx)];
    }
    for (const auto& [keyword, value] : arguments_.keyword) {
      if (keyword == name) return value;
    }
    fail(fmt::format("the format names a missing argument {}", repr(name)));
  }

  const Arguments& arguments_;
  std::size_t next_ = 0;
};

}  // namespace

std::string format_percent(std::string_view text, const Value& values) {
  return PercentFormatter(text, values).run();
}

std::string format_braces(std::string_view text, const Arguments& arguments) {
  return BraceFormatter(arguments).run(text);
}

}  // namespace nibble::tokenizer::jinja
