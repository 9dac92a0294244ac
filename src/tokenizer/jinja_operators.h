#pragma once

#include <optional>
#include <string_view>

#include "tokenizer/jinja_ast.h"

/// Python's operators on template values. Errors everywhere: InvalidArgument with Python's reason.
namespace nibble::tokenizer::jinja {

Value apply(BinaryOperator op, const Value& left, const Value& right);
Value apply(UnaryOperator op, const Value& operand);
bool compare(Comparison op, const Value& left, const Value& right);

/// `object.name`: the attribute, else the item, else Undefined (jinja2's getattr).
Value get_attribute(const Value& object, std::string_view name);
/// `object[key]`: the item, else the attribute, else Undefined (jinja2's getitem).
Value get_item(const Value& object, const Value& key);
/// `object[start:stop:step]`, None where left out.
Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step);

}  // namespace nibble::tokenizer::jinja
