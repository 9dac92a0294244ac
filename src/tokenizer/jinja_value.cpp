#include "tokenizer/jinja_value.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

template <class... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};

std::uint64_t text_weight(std::size_t size_bytes) {
  return 1 + size_bytes / 32;
}

void grow(Extent& whole, const Value& part) {
  const Extent inner = extent(part);
  whole.depth = std::max(whole.depth, inner.depth + 1);
  whole.weight += inner.weight;
  if (whole.depth > kMaxValueDepth) fail(fmt::format("a value nests deeper than {} levels", kMaxValueDepth));
  if (whole.weight > kMaxValueWeight) fail("a value grew beyond the size limit");
}

Extent extent_of(const Items& items) {
  Extent whole;
  for (const Value& item : items) grow(whole, item);
  return whole;
}

Value view_item(const DictView& view, std::size_t idx) {
  const Dict::Entry& entry = view.dict->entries()[idx];
  switch (view.part) {
    case DictView::Part::Keys: return entry.key;
    case DictView::Part::Values: return entry.value;
    case DictView::Part::Pairs: return Value::tuple({entry.key, entry.value});
  }
  return entry.key;
}

bool equal_items(const Items& left, const Items& right) {
  return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                    [](const Value& a, const Value& b) { return is_same(a, b) || equals(a, b); });
}

bool equal_dicts(const Dict& left, const Dict& right) {
  if (left.entries().size() != right.entries().size()) return false;
  return std::all_of(left.entries().begin(), left.entries().end(), [&](const Dict::Entry& entry) {
    const Value* other = right.find(entry.key);
    return other != nullptr && equals(entry.value, *other);
  });
}

bool items_less(const Items& left, const Items& right, std::string_view symbol) {
  const std::size_t shared = std::min(left.size(), right.size());
  for (std::size_t i = 0; i < shared; ++i) {
    if (!equals(left[i], right[i])) return less_than(left[i], right[i], symbol);
  }
  return left.size() < right.size();
}

}  // namespace

void fail(std::string message) {
  throw Error(ErrorCode::InvalidArgument, std::move(message));
}

void check_string_size(std::uint64_t size_bytes) {
  if (size_bytes > kMaxStringBytes) {
    fail(fmt::format("a string of {} bytes is beyond the limit of {} MiB", size_bytes, kMaxStringBytes >> 20));
  }
}

std::optional<Value> Generator::next() {
  if (is_done_) return std::nullopt;
  auto item = next_();
  is_done_ = !item.has_value();
  return item;
}

std::optional<Value> Object::attribute(std::string_view /*name*/) {
  return std::nullopt;
}

Value Object::call(Interpreter& /*interpreter*/, Arguments /*arguments*/) {
  fail(fmt::format("'{}' object is not callable", type_name()));
}

Value Value::undefined(std::string message) {
  return std::make_shared<const Undefined>(Undefined{std::move(message)});
}

Value Value::markup(std::string text) {
  return std::make_shared<const String>(String{std::move(text), true});
}

Value Value::list(Items items) {
  const Extent whole = extent_of(items);
  return std::make_shared<const List>(List{std::move(items), whole});
}

Value Value::tuple(Items items) {
  const Extent whole = extent_of(items);
  return std::make_shared<const Tuple>(Tuple{std::move(items), whole});
}

Value Value::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean: return json.get<bool>();
    case Json::value_t::string: return json.get_ref<const std::string&>();
    case Json::value_t::number_float: return json.get<double>();
    case Json::value_t::number_integer: return json.get<std::int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > INT64_MAX) fail("an integer beyond 64 bits cannot be given to a chat template");
      return json.get<std::int64_t>();
    case Json::value_t::array: {
      Items items;
      items.reserve(json.size());
      for (const Json& element : json) items.push_back(from_json(element));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<Dict::Entry> entries;
      entries.reserve(json.size());
      for (const auto& [key, element] : json.items()) entries.push_back({Value(key), from_json(element)});
      return Ref<Dict>(std::make_shared<const Dict>(std::move(entries)));
    }
    default: return None{};
  }
}

const std::string* Value::string() const {
  const auto* text = get<String>();
  return text == nullptr ? nullptr : &text->text;
}

std::optional<std::int64_t> Value::integer() const {
  if (const auto* number = std::get_if<std::int64_t>(&variant_)) return *number;
  if (const auto* flag = std::get_if<bool>(&variant_)) return *flag ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const auto* number = std::get_if<double>(&variant_)) return *number;
  if (const auto whole = integer()) return static_cast<double>(*whole);
  return std::nullopt;
}

Object* Value::object() const {
  const auto* ref = std::get_if<std::shared_ptr<Object>>(&variant_);
  return ref == nullptr ? nullptr : ref->get();
}

const Items* Value::sequence() const {
  if (const auto* list = get<List>()) return &list->items;
  if (const auto* tuple = get<Tuple>()) return &tuple->items;
  return nullptr;
}

Dict::Dict(std::vector<Entry> entries) {
  entries_.reserve(entries.size());
  for (Entry& entry : entries) {
    const std::size_t key_hash = hash(entry.key);  // refuses keys that Python cannot hash
    if (const auto known = position(entry.key)) {
      entries_[*known].value = std::move(entry.value);
      continue;
    }
    if (entries.size() > 8) positions_.emplace(key_hash, entries_.size());
    entries_.push_back(std::move(entry));
  }
  for (const Entry& entry : entries_) {
    grow(extent_, entry.key);
    grow(extent_, entry.value);
  }
}

std::optional<std::size_t> Dict::position(const Value& key) const {
  if (positions_.empty()) {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (equals(entries_[i].key, key)) return i;
    }
    return std::nullopt;
  }
  const auto [first, last] = positions_.equal_range(hash(key));
  for (auto found = first; found != last; ++found) {
    if (equals(entries_[found->second].key, key)) return found->second;
  }
  return std::nullopt;
}

const Value* Dict::find(const Value& key) const {
  hash(key);
  const auto found = position(key);
  return found ? &entries_[*found].value : nullptr;
}

Cursor::Cursor(Value iterable) : iterable_(std::move(iterable)) {
  if (!is_iterable(iterable_)) fail(fmt::format("'{}' object is not iterable", type_name(iterable_)));
}

std::optional<Value> Cursor::next() {
  if (const Items* items = iterable_.sequence()) {
    if (position_ >= items->size()) return std::nullopt;
    return (*items)[position_++];
  }
  if (const std::string* text = iterable_.string()) {
    if (position_ >= text->size()) return std::nullopt;
    const std::size_t size = text::char_size(*text, position_);
    position_ += size;
    return Value(std::string_view(*text).substr(position_ - size, size));
  }
  if (const auto* dict = iterable_.get<Dict>()) {
    if (position_ >= dict->entries().size()) return std::nullopt;
    return dict->entries()[position_++].key;
  }
  if (const auto* view = iterable_.get<DictView>()) {
    if (position_ >= view->dict->entries().size()) return std::nullopt;
    return view_item(*view, position_++);
  }
  if (const auto* range = iterable_.get<Range>()) {
    if (static_cast<std::int64_t>(position_) >= range->size) return std::nullopt;
    return range->start + range->step * static_cast<std::int64_t>(position_++);
  }
  if (const auto* generator = std::get_if<std::shared_ptr<Generator>>(&iterable_.variant()))
    return (*generator)->next();
  return std::nullopt;  // Undefined
}

Extent extent(const Value& value) {
  return std::visit(Overloaded{[](const Ref<String>& text) { return Extent{1, text_weight(text->text.size())}; },
                               [](const Ref<List>& list) { return list->extent; },
                               [](const Ref<Tuple>& tuple) { return tuple->extent; },
                               [](const Ref<Dict>& dict) { return dict->extent(); },
                               [](const Ref<DictView>& view) {
                                 return Extent{view->dict->extent().depth + 2, view->dict->extent().weight * 2};
                               },
                               [](const std::shared_ptr<Generator>& generator) { return generator->extent(); },
                               [](const std::shared_ptr<Object>& object) { return object->extent(); },
                               [](const auto& /*scalar*/) { return Extent{}; }},
                    value.variant());
}

std::uint64_t shallow_weight(const Value& value) {
  if (const std::string* text = value.string()) return text_weight(text->size());
  if (const Items* items = value.sequence()) return 1 + items->size() / 4;
  if (const auto* dict = value.get<Dict>()) return 1 + dict->entries().size() / 4;
  if (const auto* view = value.get<DictView>()) return 1 + view->dict->entries().size() / 4;
  if (const auto* range = value.get<Range>()) return 1 + static_cast<std::uint64_t>(range->size) / 4;
  return 1;
}

std::string type_name(const Value& value) {
  return std::visit(
      Overloaded{[](None) -> std::string { return "NoneType"; }, [](bool) -> std::string { return "bool"; },
                 [](std::int64_t) -> std::string { return "int"; }, [](double) -> std::string { return "float"; },
                 [](const Ref<Undefined>&) -> std::string { return "Undefined"; },
                 [](const Ref<String>& text) -> std::string { return text->is_markup ? "Markup" : "str"; },
                 [](const Ref<List>&) -> std::string { return "list"; },
                 [](const Ref<Tuple>&) -> std::string { return "tuple"; },
                 [](const Ref<Dict>&) -> std::string { return "dict"; },
                 [](const Ref<DictView>& view) -> std::string {
                   if (view->part == DictView::Part::Keys) return "dict_keys";
                   return view->part == DictView::Part::Values ? "dict_values" : "dict_items";
                 },
                 [](const Ref<Range>&) -> std::string { return "range"; },
                 [](const std::shared_ptr<Generator>&) -> std::string { return "generator"; },
                 [](const std::shared_ptr<Object>& object) { return object->type_name(); }},
      value.variant());
}

bool is_truthy(const Value& value) {
  if (value.is_none() || value.is_undefined()) return false;
  if (const auto number = value.number()) return *number != 0;
  if (const auto size = length(value)) return *size != 0;
  return true;
}

bool is_callable(const Value& value) {
  if (value.is_undefined()) return true;  // it has __call__, which fails
  const Object* object = value.object();
  return object != nullptr && object->is_callable();
}

bool is_iterable(const Value& value) {
  return !value.is_none() && !value.number() && value.object() == nullptr;
}

std::optional<std::int64_t> length(const Value& value) {
  const auto signed_size = [](std::size_t size) { return static_cast<std::int64_t>(size); };
  if (const std::string* text = value.string()) return signed_size(text::count(*text));
  if (const Items* items = value.sequence()) return signed_size(items->size());
  if (const auto* dict = value.get<Dict>()) return signed_size(dict->entries().size());
  if (const auto* view = value.get<DictView>()) return signed_size(view->dict->entries().size());
  if (const auto* range = value.get<Range>()) return range->size;
  if (value.is_undefined()) return 0;
  if (Object* object = value.object()) return object->length();
  return std::nullopt;
}

bool is_same(const Value& left, const Value& right) {
  if (left.variant().index() != right.variant().index()) return false;
  if (const std::string* text = left.string()) return text == right.string() || *text == *right.string();
  return left.variant() == right.variant();
}

bool equals(const Value& left, const Value& right) {
  if (const auto left_whole = left.integer(), right_whole = right.integer(); left_whole && right_whole) {
    return *left_whole == *right_whole;
  }
  if (const auto a = left.number(), b = right.number(); a && b) return *a == *b;
  if (const std::string *a = left.string(), *b = right.string(); a != nullptr && b != nullptr) return *a == *b;
  if (const auto *a = left.get<List>(), *b = right.get<List>(); a != nullptr && b != nullptr) {
    return equal_items(a->items, b->items);
  }
  if (const auto *a = left.get<Tuple>(), *b = right.get<Tuple>(); a != nullptr && b != nullptr) {
    return equal_items(a->items, b->items);
  }
  if (const auto *a = left.get<Dict>(), *b = right.get<Dict>(); a != nullptr && b != nullptr) {
    return equal_dicts(*a, *b);
  }
  if (const auto *a = left.get<Range>(), *b = right.get<Range>(); a != nullptr && b != nullptr) {
    if (a->size != b->size) return false;
    return a->size == 0 || (a->start == b->start && (a->size == 1 || a->step == b->step));
  }
  if (left.is_undefined() && right.is_undefined()) return true;
  return left.variant().index() == right.variant().index() && left.variant() == right.variant();
}

std::size_t hash(const Value& value) {
  if (const auto whole = value.integer()) return std::hash<std::int64_t>()(*whole);
  if (const auto number = value.number()) {
    const bool is_whole = std::floor(*number) == *number && std::fabs(*number) < 0x1p62;
    return is_whole ? std::hash<std::int64_t>()(static_cast<std::int64_t>(*number)) : std::hash<double>()(*number);
  }
  if (const std::string* text = value.string()) return std::hash<std::string>()(*text);
  if (const auto* tuple = value.get<Tuple>()) {
    std::size_t combined = 0x345678;
    for (const Value& item : tuple->items) combined = combined * 1000003 + hash(item);
    return combined;
  }
  if (value.get<List>() != nullptr || value.get<Dict>() != nullptr || value.get<DictView>() != nullptr) {
    fail(fmt::format("unhashable type: '{}'", type_name(value)));
  }
  return value.variant().index();
}

bool less_than(const Value& left, const Value& right, std::string_view symbol) {
  if (const auto a = left.integer(), b = right.integer(); a && b) return *a < *b;
  if (const auto a = left.number(), b = right.number(); a && b) return *a < *b;
  // UTF-8 sorts by code point, as Python does.
  if (const std::string *a = left.string(), *b = right.string(); a != nullptr && b != nullptr) return *a < *b;
  if (const auto *a = left.get<List>(), *b = right.get<List>(); a != nullptr && b != nullptr) {
    return items_less(a->items, b->items, symbol);
  }
  if (const auto *a = left.get<Tuple>(), *b = right.get<Tuple>(); a != nullptr && b != nullptr) {
    return items_less(a->items, b->items, symbol);
  }
  if (const auto* missing = left.is_undefined() ? left.get<Undefined>() : right.get<Undefined>()) {
    fail(missing->message);
  }
  fail(fmt::format("'{}' not supported between instances of '{}' and '{}'", symbol, type_name(left), type_name(right)));
}

bool contains(const Value& haystack, const Value& needle) {
  if (const std::string* text = haystack.string()) {
    const std::string* part = needle.string();
    if (part == nullptr) fail(fmt::format("'in <string>' requires string as left operand, not {}", type_name(needle)));
    return text::find(*text, *part) != std::string::npos;
  }
  if (const auto* dict = haystack.get<Dict>()) return dict->find(needle) != nullptr;
  if (const auto* view = haystack.get<DictView>(); view != nullptr && view->part == DictView::Part::Keys) {
    return view->dict->find(needle) != nullptr;
  }
  if (!is_iterable(haystack)) fail(fmt::format("argument of type '{}' is not iterable", type_name(haystack)));
  Cursor cursor(haystack);
  while (const auto item = cursor.next()) {
    if (is_same(*item, needle) || equals(*item, needle)) return true;
  }
  return false;
}

}  // namespace nibble::tokenizer::jinja
