#pragma once

#include <functional>
#include <span>

#include "tokenizer/jinja_library.h"

/// The filters in two files, joined by find_filter.
namespace nibble::tokenizer::jinja {

struct FilterRow {
  std::string_view name;
  FilterFunction function;
};
std::span<const FilterRow> sequence_filters();

/// jinja2's make_attrgetter: follows "a.b.0" item by item; None is the item itself.
std::function<Value(const Value&)> attribute_getter(const Value& attribute,
                                                    std::optional<Value> fallback = std::nullopt);

}  // namespace nibble::tokenizer::jinja
