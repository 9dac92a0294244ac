#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_library.h"

/// Methods of Python's types: tables of functions, and the value that `"a".upper` is before it is called.
namespace nibble::tokenizer::jinja {

using MethodFunction = Value (*)(Interpreter& interpreter, const Value& self, Arguments& arguments);
struct Method {
  std::string_view name;
  MethodFunction function;
};

/// `method_` lies in a table that lives as long as the program.
class BoundMethod : public Object {
 public:
  BoundMethod(Value self, const Method& method) : self_(std::move(self)), method_(method) {}
  std::string type_name() const override { return "builtin_function_or_method"; }
  std::string repr() const override {
    return fmt::format("<built-in method {} of {} object>", method_.name, jinja::type_name(self_));
  }
  bool is_callable() const override { return true; }
  Value call(Interpreter& interpreter, Arguments arguments) override {
    interpreter.charge(shallow_weight(self_));
    Value result = method_.function(interpreter, self_, arguments);
    // Markup's methods make Markup.
    return self_.is_markup() && result.is_string() ? Value::markup(*result.string()) : result;
  }
  Extent extent() const override {
    Extent whole = jinja::extent(self_);
    ++whole.depth;
    return whole;
  }

 private:
  Value self_;
  const Method& method_;
};

template <class Table>
std::optional<Value> bind_method(const Table& table, const Value& self, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const Method& row) { return row.name == name; });
  if (found == table.end()) return std::nullopt;
  return Value(std::shared_ptr<Object>(std::make_shared<BoundMethod>(self, *found)));
}

/// The method `name` of a string; nullopt where str has none.
std::optional<Value> find_string_method(const Value& self, std::string_view name);

}  // namespace nibble::tokenizer::jinja
