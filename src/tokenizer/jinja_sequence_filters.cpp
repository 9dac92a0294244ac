#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>

#include "tokenizer/jinja_filters.h"
#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

// Filters of lists, dicts and other iterables. Those that are generators in jinja2 are lazy here too: an item is only
// looked at when it is asked for.
namespace nibble::tokenizer::jinja {
namespace {

Value make_generator(const Value& source, Generator::Next next) {
  Extent whole = extent(source);
  ++whole.depth;
  if (whole.depth > kMaxValueDepth) fail(fmt::format("a value nests deeper than {} levels", kMaxValueDepth));
  return std::make_shared<Generator>(std::move(next), whole);
}

/// Strings compare without case unless asked otherwise.
Value ignore_case(const Value& value) {
  return value.is_string() ? Value(text::lower(*value.string())) : value;
}

std::function<Value(const Value&)> key_getter(const Value& attribute, bool is_case_sensitive) {
  auto get = attribute_getter(attribute);
  if (is_case_sensitive) return get;
  return [get](const Value& item) { return ignore_case(get(item)); };
}

/// Stable sort by keys made once. Errors: InvalidArgument where two keys do not compare.
Items sort_by(Interpreter& interpreter, const Items& items, const std::function<Value(const Value&)>& key,
              bool is_reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  std::uint64_t weight = 0;
  for (const Value& item : items) {
    keyed.emplace_back(key(item), item);
    weight += extent(keyed.back().first).weight;
  }
  std::uint64_t rounds = 1;
  for (std::size_t n = items.size(); n > 1; n /= 2) ++rounds;
  interpreter.charge(weight * rounds);
  // Reversed, equal items keep their order, as in Python.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& left, const auto& right) {
    return is_reverse ? less_than(right.first, left.first) : less_than(left.first, right.first);
  });
  Items sorted;
  for (auto& [unused, item] : keyed) sorted.push_back(std::move(item));
  return sorted;
}

Value length_filter(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("length", arguments, {});
  if (const auto size = length(subject)) return *size;
  fail(fmt::format("object of type '{}' has no len()", type_name(subject)));
}

Value list_filter(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("list", arguments, {});
  return Value::list(interpreter.collect(subject));
}

Value items(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("items", arguments, {});
  // A generator: what is no mapping only fails once it is walked over.
  const auto state = std::make_shared<std::optional<Cursor>>();
  return make_generator(subject, [subject, state]() -> std::optional<Value> {
    if (!*state) {
      if (subject.is_undefined()) return std::nullopt;
      if (subject.get<Dict>() == nullptr) fail("Can only get item pairs from a mapping.");
      const auto& dict = std::get<Ref<Dict>>(subject.variant());
      state->emplace(Value(std::make_shared<const DictView>(DictView{dict, DictView::Part::Pairs})));
    }
    return (*state)->next();
  });
}

Value first(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("first", arguments, {});
  Cursor cursor(subject);
  auto item = cursor.next();
  return item ? *item : Value::undefined("No first item, sequence was empty.");
}

/// reversed() works on sequences, dicts and views, not on generators.
void check_reversible(const Value& value) {
  if (!is_iterable(value) || std::holds_alternative<std::shared_ptr<Generator>>(value.variant())) {
    fail(fmt::format("'{}' object is not reversible", type_name(value)));
  }
}

Value last(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("last", arguments, {});
  check_reversible(subject);
  if (const Items* sequence = subject.sequence(); sequence != nullptr && !sequence->empty()) return sequence->back();
  Items all = interpreter.collect(subject);
  return all.empty() ? Value::undefined("No last item, sequence was empty.") : all.back();
}

Value reverse(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("reverse", arguments, {});
  if (subject.is_string()) return get_slice(subject, Value(), Value(), Value(-1));
  if (!is_iterable(subject)) fail("argument must be iterable");
  Items all = interpreter.collect(subject);
  std::reverse(all.begin(), all.end());
  Value reversed = Value::list(std::move(all));
  if (std::holds_alternative<std::shared_ptr<Generator>>(subject.variant())) return reversed;
  const auto cursor = std::make_shared<Cursor>(reversed);
  return make_generator(reversed, [cursor] { return cursor->next(); });
}

Value join(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("join", arguments, {"d", "attribute"});
  const auto get = attribute_getter(bound.value(1));
  const std::string separator = bound.has(0) ? to_string(bound.value(0)) : "";
  std::string joined;
  bool is_first = true;
  Cursor cursor(subject);
  while (const auto item = cursor.next()) {
    const Value part = get(*item);
    interpreter.charge(extent(part).weight + separator.size() / 32);
    if (!is_first) joined += separator;
    is_first = false;
    joined += to_string(part);
    check_string_size(joined.size());
  }
  return joined;
}

Value sort(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const bool is_case_sensitive = bound.flag(1, false);
  const Value attribute = bound.value(2);
  std::vector<std::function<Value(const Value&)>> getters;
  if (attribute.is_string()) {  // "name,age": by the first, then by the second
    for (const std::string_view part : text::split(*attribute.string(), ",", text::kAllSplits)) {
      getters.push_back(key_getter(Value(part), is_case_sensitive));
    }
  } else {
    getters.push_back(key_getter(attribute, is_case_sensitive));
  }
  const auto key = [&](const Value& item) {
    Items keys;
    for (const auto& get : getters) keys.push_back(get(item));
    return Value::list(std::move(keys));
  };
  return Value::list(sort_by(interpreter, interpreter.collect(subject), key, bound.flag(0, false)));
}

Value dict_sort(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string by = bound.has(1) ? bound.text(1) : "key";
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  const auto get = key_getter(Value(by == "key" ? 0 : 1), bound.flag(0, false));
  const Items pairs = interpreter.collect(interpreter.call(get_attribute(subject, "items"), {}));
  return Value::list(sort_by(interpreter, pairs, get, bound.flag(2, false)));
}

Value unique(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
  struct State {
    Cursor cursor;
    std::function<Value(const Value&)> key;
    std::unordered_multimap<std::size_t, Value> seen;
  };
  const auto state =
      std::make_shared<State>(State{Cursor(subject), key_getter(bound.value(1), bound.flag(0, false)), {}});
  return make_generator(subject, [state, &interpreter]() -> std::optional<Value> {
    while (auto item = state->cursor.next()) {
      Value key = state->key(*item);
      interpreter.charge(extent(key).weight);
      const std::size_t key_hash = hash(key);
      const auto [begin, end] = state->seen.equal_range(key_hash);
      if (std::any_of(begin, end, [&](const auto& entry) { return equals(entry.second, key); })) continue;
      state->seen.emplace(key_hash, std::move(key));
      return item;
    }
    return std::nullopt;
  });
}

enum class Extreme : std::uint8_t { Min, Max };

template <Extreme extreme>
Value extreme_of(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("min", arguments, {"case_sensitive", "attribute"});
  const auto key = key_getter(bound.value(1), bound.flag(0, false));
  std::optional<Value> best;
  std::optional<Value> best_key;
  for (const Value& item : interpreter.collect(subject)) {
    Value item_key = key(item);
    interpreter.charge(extent(item_key).weight);
    const bool is_better =
        !best_key || (extreme == Extreme::Min ? less_than(item_key, *best_key) : less_than(*best_key, item_key, ">"));
    if (!is_better) continue;
    best = item;
    best_key = std::move(item_key);
  }
  return best ? *best : Value::undefined("No aggregated item, sequence was empty.");
}

Value sum(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("sum", arguments, {"attribute", "start"});
  const auto get = attribute_getter(bound.value(0));
  Value total = bound.has(1) ? bound.value(1) : Value(0);
  if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : interpreter.collect(subject)) {
    total = apply(BinaryOperator::Add, total, get(item));
    interpreter.charge(shallow_weight(total));
  }
  return total;
}

Value batch(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
  const std::int64_t size = bound.integer(0, 1);
  const Value fill = bound.value(1);
  const auto cursor = std::make_shared<Cursor>(subject);
  const auto held = std::make_shared<std::optional<Value>>();
  return make_generator(subject, [cursor, held, size, fill, &interpreter]() -> std::optional<Value> {
    Items row;
    if (*held) row.push_back(*std::exchange(*held, std::nullopt));
    while (auto item = cursor->next()) {
      interpreter.charge(1);
      if (static_cast<std::int64_t>(row.size()) == size) {
        *held = *std::move(item);
        return Value::list(std::move(row));
      }
      row.push_back(*std::move(item));
    }
    if (row.empty()) return std::nullopt;
    while (!fill.is_none() && static_cast<std::int64_t>(row.size()) < size) {
      interpreter.charge(1);
      row.push_back(fill);
    }
    return Value::list(std::move(row));
  });
}

Value slice(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
  const std::int64_t num_slices = bound.integer(0, 1);
  if (num_slices == 0) fail("integer division or modulo by zero");
  const Items all = interpreter.collect(subject);
  const auto size = static_cast<std::int64_t>(all.size());
  Items slices;
  std::int64_t begin = 0;
  for (std::int64_t i = 0; i < num_slices; ++i) {
    interpreter.charge(1);
    const bool has_extra = i < size % num_slices;
    const std::int64_t end = begin + size / num_slices + (has_extra ? 1 : 0);
    Items part(all.begin() + begin, all.begin() + end);
    if (!bound.is_none(1) && !has_extra) part.push_back(bound.value(1));
    slices.push_back(Value::list(std::move(part)));
    begin = end;
  }
  const Value list = Value::list(std::move(slices));
  const auto cursor = std::make_shared<Cursor>(list);
  return make_generator(list, [cursor] { return cursor->next(); });
}

/// What groupby makes: a pair that also answers to .grouper and .list.
Value group_by(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const auto fallback = bound.is_none(1) ? std::nullopt : std::optional<Value>(bound.value(1));
  const auto get = attribute_getter(bound.value(0), fallback);
  const bool is_case_sensitive = bound.flag(2, false);
  const auto key = [&](const Value& item) { return is_case_sensitive ? get(item) : ignore_case(get(item)); };
  const Items sorted = sort_by(interpreter, interpreter.collect(subject), key, false);
  Items groups;
  for (std::size_t begin = 0; begin < sorted.size();) {
    std::size_t end = begin + 1;
    while (end < sorted.size() && equals(key(sorted[begin]), key(sorted[end]))) ++end;
    Items members(sorted.begin() + static_cast<std::ptrdiff_t>(begin),
                  sorted.begin() + static_cast<std::ptrdiff_t>(end));
    groups.push_back(Value::tuple({get(sorted[begin]), Value::list(std::move(members))}));
    begin = end;
  }
  return Value::list(std::move(groups));
}

Value map(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  std::function<Value(const Value&)> function;
  const bool by_attribute =
      arguments.positional.empty() && std::any_of(arguments.keyword.begin(), arguments.keyword.end(),
                                                  [](const auto& entry) { return entry.first == "attribute"; });
  if (by_attribute) {
    const Bound bound("map", arguments, {"attribute", "default"});
    function = attribute_getter(bound.value(0), bound.is_none(1) ? std::nullopt : std::optional<Value>(bound.value(1)));
  } else {
    // Wrong arguments only count once there is an item, as in jinja2's generator.
    function = [&interpreter, arguments](const Value& item) {
      if (arguments.positional.empty()) fail("map requires a filter argument");
      if (!arguments.positional[0].is_string()) fail("map requires the name of a filter");
      Arguments rest{Items(arguments.positional.begin() + 1, arguments.positional.end()), arguments.keyword};
      return interpreter.call_filter(*arguments.positional[0].string(), item, std::move(rest));
    };
  }
  if (!is_truthy(subject)) return make_generator(subject, []() { return std::optional<Value>(); });
  const auto cursor = std::make_shared<Cursor>(subject);
  return make_generator(subject, [cursor, function, &interpreter]() -> std::optional<Value> {
    const auto item = cursor->next();
    if (!item) return std::nullopt;
    interpreter.charge(1);
    return function(*item);
  });
}

enum class Keep : std::uint8_t { Matching, Others };
enum class Look : std::uint8_t { AtItem, AtAttribute };

template <Keep keep, Look look>
Value select(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  if (!is_truthy(subject)) return make_generator(subject, []() { return std::optional<Value>(); });
  constexpr std::size_t kTestIdx = look == Look::AtAttribute ? 1 : 0;
  Value attribute;
  if (look == Look::AtAttribute && !arguments.positional.empty()) attribute = arguments.positional[0];
  const auto get = attribute_getter(attribute);
  const auto passes = [&interpreter, arguments, get](const Value& item) {
    if (arguments.positional.size() < kTestIdx) fail("Missing parameter for attribute name");
    const Value looked_at = get(item);
    if (arguments.positional.size() <= kTestIdx) return is_truthy(looked_at);
    if (!arguments.positional[kTestIdx].is_string()) fail("select needs the name of a test");
    Arguments rest{Items(arguments.positional.begin() + kTestIdx + 1, arguments.positional.end()), arguments.keyword};
    return interpreter.call_test(*arguments.positional[kTestIdx].string(), looked_at, std::move(rest));
  };
  const auto cursor = std::make_shared<Cursor>(subject);
  return make_generator(subject, [cursor, passes, &interpreter]() -> std::optional<Value> {
    while (auto item = cursor->next()) {
      interpreter.charge(1);
      if (passes(*item) == (keep == Keep::Matching)) return item;
    }
    return std::nullopt;
  });
}

constexpr auto kSequenceFilters = std::to_array<FilterRow>({
    {"batch", batch},
    {"count", length_filter},
    {"dictsort", dict_sort},
    {"first", first},
    {"groupby", group_by},
    {"items", items},
    {"join", join},
    {"last", last},
    {"length", length_filter},
    {"list", list_filter},
    {"map", map},
    {"max", extreme_of<Extreme::Max>},
    {"min", extreme_of<Extreme::Min>},
    {"reject", select<Keep::Others, Look::AtItem>},
    {"rejectattr", select<Keep::Others, Look::AtAttribute>},
    {"reverse", reverse},
    {"select", select<Keep::Matching, Look::AtItem>},
    {"selectattr", select<Keep::Matching, Look::AtAttribute>},
    {"slice", slice},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
});

}  // namespace

std::span<const FilterRow> sequence_filters() {
  return kSequenceFilters;
}

std::function<Value(const Value&)> attribute_getter(const Value& attribute, std::optional<Value> fallback) {
  Items parts;
  if (const std::string* path = attribute.string()) {
    for (const std::string_view part : text::split(*path, ".", text::kAllSplits)) {
      std::int64_t number = 0;
      const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos &&
                             std::from_chars(part.data(), part.data() + part.size(), number).ec == std::errc();
      parts.push_back(is_number ? Value(number) : Value(part));
    }
  } else if (!attribute.is_none()) {
    parts.push_back(attribute);
  }
  return [parts, fallback](const Value& item) {
    Value current = item;
    for (const Value& part : parts) {
      current = get_item(current, part);
      if (fallback && current.is_undefined()) current = *fallback;
    }
    return current;
  };
}

}  // namespace nibble::tokenizer::jinja
