#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja_value.h"

/// What a template can use by name: filters, tests, methods of Python's types, global functions.
namespace nibble::tokenizer::jinja {

using FilterFunction = Value (*)(Interpreter& interpreter, const Value& subject, Arguments& arguments);
using TestFunction = bool (*)(Interpreter& interpreter, const Value& subject, Arguments& arguments);
/// nullptr for an unknown name.
FilterFunction find_filter(std::string_view name);
TestFunction find_test(std::string_view name);
/// The bound method `name` of a str, list, tuple, dict or number; nullopt where Python has no such attribute.
/// Methods that would change a list or a dict are an Undefined that says they are unsafe, as in the sandbox.
std::optional<Value> find_method(const Value& self, std::string_view name);
/// range, dict, namespace, cycler, joiner, raise_exception, strftime_now; nullopt for another name.
std::optional<Value> find_global(std::string_view name);

/// Arguments matched to parameters, as Python does it. A parameter whose name starts with "/" is positional only.
class Bound {
 public:
  /// Errors: InvalidArgument for too many, unknown or missing arguments; the first `required` parameters must be given.
  Bound(std::string_view function, Arguments& arguments, std::initializer_list<std::string_view> parameters,
        std::size_t required = 0);

  bool has(std::size_t idx) const { return values_[idx].has_value(); }
  /// None where it was not given.
  Value value(std::size_t idx) const { return values_[idx].value_or(Value()); }
  bool is_none(std::size_t idx) const { return value(idx).is_none(); }
  std::int64_t integer(std::size_t idx, std::int64_t fallback) const;
  bool flag(std::size_t idx, bool fallback) const { return has(idx) ? is_truthy(*values_[idx]) : fallback; }
  /// Errors: InvalidArgument where the argument is no string.
  std::string text(std::size_t idx) const;

 private:
  std::string function_;
  std::vector<std::optional<Value>> values_;
};

/// A function of ours as a template's value.
class NativeFunction : public Object {
 public:
  using Function = Value (*)(Interpreter& interpreter, Arguments& arguments);
  NativeFunction(std::string name, Function function) : name_(std::move(name)), function_(function) {}
  std::string type_name() const override { return "function"; }
  std::string repr() const override { return "<function " + name_ + ">"; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& interpreter, Arguments arguments) override { return function_(interpreter, arguments); }

 private:
  std::string name_;
  Function function_;
};

/// `{% set ns.x = … %}` writes here; everything else of a template is immutable.
class Namespace : public Object {
 public:
  std::string type_name() const override { return "TemplateNamespace"; }
  std::string repr() const override;
  std::optional<Value> attribute(std::string_view name) override;
  void set(std::string_view name, Value value);
  void release() override { attributes_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> attributes_;
};

}  // namespace nibble::tokenizer::jinja
