#include "tokenizer/jinja_print.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

void append_repr(std::string& out, const Value& value);

void append_repr(std::string& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    const char32_t c = text::code_point_at(text, i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c >= ' ' && c < 0x7F) {
      out += static_cast<char>(c);
    } else if (text::is_printable(c)) {
      out += text.substr(i, text::char_size(text, i));
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<std::uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<std::uint32_t>(c));
    }
  }
  out += quote;
}

void append_items(std::string& out, const Items& items) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(out, items[i]);
  }
}

void append_dict(std::string& out, const Dict& dict) {
  out += '{';
  bool is_first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!is_first) out += ", ";
    is_first = false;
    append_repr(out, key);
    out += ": ";
    append_repr(out, value);
  }
  out += '}';
}

std::string range_repr(const Range& range) {
  const std::int64_t stop = range.start + range.size * range.step;
  if (range.step == 1) return fmt::format("range({}, {})", range.start, stop);
  return fmt::format("range({}, {}, {})", range.start, stop, range.step);
}

void append_repr(std::string& out, const Value& value) {
  check_string_size(out.size());
  if (value.is_none()) {
    out += "None";
  } else if (value.is_bool()) {
    out += is_truthy(value) ? "True" : "False";
  } else if (const auto whole = value.integer()) {
    out += std::to_string(*whole);
  } else if (const auto number = value.number()) {
    out += repr(*number);
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else if (const std::string* text = value.string()) {
    if (value.is_markup()) out += "Markup(";
    append_repr(out, std::string_view(*text));
    if (value.is_markup()) out += ')';
  } else if (const auto* list = value.get<List>()) {
    out += '[';
    append_items(out, list->items);
    out += ']';
  } else if (const auto* tuple = value.get<Tuple>()) {
    out += '(';
    append_items(out, tuple->items);
    out += tuple->items.size() == 1 ? ",)" : ")";
  } else if (const auto* dict = value.get<Dict>()) {
    append_dict(out, *dict);
  } else if (value.get<DictView>() != nullptr) {
    out += type_name(value) + "([";
    Items items;
    Cursor cursor(value);
    while (auto item = cursor.next()) items.push_back(*std::move(item));
    append_items(out, items);
    out += "])";
  } else if (const auto* range = value.get<Range>()) {
    out += range_repr(*range);
  } else if (const Object* object = value.object()) {
    out += object->repr();
  } else {
    out += "<generator object>";  // Python prints an address
  }
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  std::string write(const Value& value) && {
    append(value);
    return std::move(out_);
  }

 private:
  void append(const Value& value);
  void append_text(std::string_view text);
  void append_escaped(char32_t c);
  void append_dict(const Dict& dict);
  void append_array(const Items& items);
  void new_line() {
    if (!style_.is_indented) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += style_.indent;
  }
  static std::string number_text(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return repr(number);
  }
  static std::string key_text(const Value& key);

  const JsonStyle& style_;
  std::string out_;
  int level_ = 0;
};

void JsonWriter::append(const Value& value) {
  check_string_size(out_.size());
  if (value.is_none()) {
    out_ += "null";
  } else if (value.is_bool()) {
    out_ += is_truthy(value) ? "true" : "false";
  } else if (const auto whole = value.integer()) {
    out_ += std::to_string(*whole);
  } else if (const auto number = value.number()) {
    out_ += number_text(*number);
  } else if (const std::string* text = value.string()) {
    append_text(*text);
  } else if (const Items* items = value.sequence()) {
    append_array(*items);
  } else if (const auto* dict = value.get<Dict>()) {
    append_dict(*dict);
  } else {
    fail(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
  }
}

void JsonWriter::append_escaped(char32_t c) {
  if (c >= 0x10000) {  // only with ensure_ascii: a surrogate pair
    const std::uint32_t offset = static_cast<std::uint32_t>(c) - 0x10000;
    out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (offset >> 10), 0xDC00 + (offset & 0x3FF));
  } else {
    out_ += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(c));
  }
}

void JsonWriter::append_text(std::string_view text) {
  out_ += '"';
  for (std::size_t i = 0; i < text.size(); i += text::char_size(text, i)) {
    const char32_t c = text::code_point_at(text, i);
    switch (c) {
      case '"': out_ += "\\\""; break;
      case '\\': out_ += "\\\\"; break;
      case '\n': out_ += "\\n"; break;
      case '\r': out_ += "\\r"; break;
      case '\t': out_ += "\\t"; break;
      case '\b': out_ += "\\b"; break;
      case '\f': out_ += "\\f"; break;
      default:
        if (c < 0x20 || (style_.ensure_ascii && c > 0x7E)) {
          append_escaped(c);
        } else {
          out_ += text.substr(i, text::char_size(text, i));
        }
    }
  }
  out_ += '"';
}

std::string JsonWriter::key_text(const Value& key) {
  if (key.is_none()) return "null";
  if (key.is_bool()) return is_truthy(key) ? "true" : "false";
  if (const auto whole = key.integer()) return std::to_string(*whole);
  if (const auto number = key.number()) return number_text(*number);
  if (const std::string* text = key.string()) return *text;
  fail(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
}

void JsonWriter::append_dict(const Dict& dict) {
  if (dict.entries().empty()) {
    out_ += "{}";
    return;
  }
  auto entries = dict.entries();
  if (style_.sort_keys) {
    std::stable_sort(entries.begin(), entries.end(),
                     [](const auto& left, const auto& right) { return less_than(left.key, right.key); });
  }
  out_ += '{';
  ++level_;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) out_ += style_.item_separator;
    new_line();
    append_text(key_text(entries[i].key));
    out_ += style_.key_separator;
    append(entries[i].value);
  }
  --level_;
  new_line();
  out_ += '}';
}

void JsonWriter::append_array(const Items& items) {
  if (items.empty()) {
    out_ += "[]";
    return;
  }
  out_ += '[';
  ++level_;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out_ += style_.item_separator;
    new_line();
    append(items[i]);
  }
  --level_;
  new_line();
  out_ += ']';
}

}  // namespace

std::string to_string(const Value& value) {
  if (const std::string* text = value.string()) return *text;
  if (value.is_undefined()) return {};
  return repr(value);
}

std::string repr(const Value& value) {
  std::string out;
  append_repr(out, value);
  check_string_size(out.size());
  return out;
}

std::string repr(std::string_view text) {
  std::string out;
  append_repr(out, text);
  return out;
}

std::string repr(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  std::array<char, 40> buffer{};
  const auto written =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::scientific);
  const std::string_view shortest(buffer.data(), static_cast<std::size_t>(written.ptr - buffer.data()));
  const std::size_t e = shortest.find('e');
  int exponent = 0;
  const std::string_view exponent_text = shortest.substr(e + (shortest[e + 1] == '+' ? 2 : 1));
  std::from_chars(exponent_text.data(), exponent_text.data() + exponent_text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {  // Python's rule for float.__repr__
    return fmt::format("{}e{}{:02}", shortest.substr(0, e), exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::fixed);
  std::string text(buffer.data(), fixed.ptr);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string to_json(const Value& value, const JsonStyle& style) {
  return JsonWriter(style).write(value);
}

}  // namespace nibble::tokenizer::jinja
