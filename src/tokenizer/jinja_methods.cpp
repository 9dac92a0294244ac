#include "tokenizer/jinja_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "tokenizer/jinja_print.h"

// Methods of dicts, lists, tuples and numbers. Those of strings are in jinja_string_methods.cpp.
namespace nibble::tokenizer::jinja {
namespace {

template <DictView::Part part>
Value view(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("dict method", arguments, {});
  return Ref<DictView>(std::make_shared<const DictView>(DictView{std::get<Ref<Dict>>(self.variant()), part}));
}

Value dict_get(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("get", arguments, {"/key", "/default"}, 1);
  const Value* found = self.get<Dict>()->find(bound.value(0));
  return found == nullptr ? bound.value(1) : *found;
}

Value copy(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("copy", arguments, {});
  return self;  // immutable: a copy is the value itself
}

constexpr auto kDictMethods = std::to_array<Method>({
    {"copy", copy},
    {"get", dict_get},
    {"items", view<DictView::Part::Pairs>},
    {"keys", view<DictView::Part::Keys>},
    {"values", view<DictView::Part::Values>},
});

Value sequence_count(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  const Bound bound("count", arguments, {"/value"}, 1);
  interpreter.charge(extent(self).weight);
  const Value wanted = bound.value(0);
  return static_cast<std::int64_t>(std::count_if(self.sequence()->begin(), self.sequence()->end(),
                                                 [&](const Value& item) { return equals(item, wanted); }));
}

Value sequence_index(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  const Bound bound("index", arguments, {"/value", "/start", "/stop"}, 1);
  interpreter.charge(extent(self).weight);
  const Value wanted = bound.value(0);
  const Items& items = *self.sequence();
  const auto size = static_cast<std::int64_t>(items.size());
  const auto clamp = [&](std::int64_t position) {
    return std::clamp<std::int64_t>(position < 0 ? position + size : position, 0, size);
  };
  const std::int64_t end = clamp(bound.integer(2, size));
  for (std::int64_t i = clamp(bound.integer(1, 0)); i < end; ++i) {
    if (equals(items[static_cast<std::size_t>(i)], wanted)) return i;
  }
  fail(fmt::format("{} is not in list", repr(wanted)));
}

constexpr auto kListMethods = std::to_array<Method>({
    {"copy", copy},
    {"count", sequence_count},
    {"index", sequence_index},
});
constexpr auto kTupleMethods = std::to_array<Method>({
    {"count", sequence_count},
    {"index", sequence_index},
});

Value is_integer(Interpreter& /*interpreter*/, const Value& self, Arguments& arguments) {
  const Bound bound("is_integer", arguments, {});
  return std::floor(*self.number()) == *self.number();
}
constexpr auto kFloatMethods = std::to_array<Method>({{"is_integer", is_integer}});

constexpr std::string_view kListMutators[] = {"append", "clear", "pop",    "reverse",
                                              "insert", "sort",  "extend", "remove"};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem", "setdefault", "update"};

template <class Names>
std::optional<Value> refuse(const Names& mutators, const Value& self, std::string_view name) {
  if (std::find(std::begin(mutators), std::end(mutators), name) == std::end(mutators)) return std::nullopt;
  return Value::undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(self)));
}

}  // namespace

std::optional<Value> find_method(const Value& self, std::string_view name) {
  if (self.is_string()) return find_string_method(self, name);
  if (self.is_float()) return bind_method(kFloatMethods, self, name);
  if (self.get<Tuple>() != nullptr) return bind_method(kTupleMethods, self, name);
  if (self.get<List>() != nullptr) {
    auto unsafe = refuse(kListMutators, self, name);
    return unsafe ? unsafe : bind_method(kListMethods, self, name);
  }
  if (self.get<Dict>() != nullptr) {
    auto unsafe = refuse(kDictMutators, self, name);
    return unsafe ? unsafe : bind_method(kDictMethods, self, name);
  }
  return std::nullopt;
}

}  // namespace nibble::tokenizer::jinja
