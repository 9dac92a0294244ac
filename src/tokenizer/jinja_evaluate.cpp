#include <fmt/format.h>

#include <algorithm>

#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/jinja_print.h"

// Expressions. What an operation costs is charged here, in one place, so that the library need not think of it.
namespace nibble::tokenizer::jinja {

Value Interpreter::evaluate(const Expression& expression, const ScopePtr& scope) {
  const Depth depth(*this);
  charge(1);
  line_ = expression.line;
  return std::visit([&](const auto& node) { return evaluate(node, scope); }, expression.node);
}

Value Interpreter::evaluate(const Constant& node, const ScopePtr& /*scope*/) {
  return node.value;
}

Value Interpreter::evaluate(const Name& node, const ScopePtr& scope) {
  return look_up(node.id, scope);
}

Items Interpreter::evaluate_all(const Expressions& expressions, const ScopePtr& scope) {
  Items values;
  values.reserve(expressions.size());
  for (const ExpressionPtr& expression : expressions) values.push_back(evaluate(*expression, scope));
  return values;
}

Value Interpreter::evaluate(const ListLiteral& node, const ScopePtr& scope) {
  return Value::list(evaluate_all(node.items, scope));
}

Value Interpreter::evaluate(const TupleLiteral& node, const ScopePtr& scope) {
  return Value::tuple(evaluate_all(node.items, scope));
}

Value Interpreter::evaluate(const DictLiteral& node, const ScopePtr& scope) {
  std::vector<Dict::Entry> entries;
  entries.reserve(node.entries.size());
  for (const auto& [key, value] : node.entries) {
    Value key_value = evaluate(*key, scope);
    charge(extent(key_value).weight);
    entries.push_back({std::move(key_value), evaluate(*value, scope)});
  }
  return Ref<Dict>(std::make_shared<const Dict>(std::move(entries)));
}

Value Interpreter::evaluate(const Unary& node, const ScopePtr& scope) {
  return apply(node.op, evaluate(*node.operand, scope));
}

Value Interpreter::evaluate(const Binary& node, const ScopePtr& scope) {
  const Value left = evaluate(*node.left, scope);
  const Value right = evaluate(*node.right, scope);
  if (node.op == BinaryOperator::Modulo && left.is_string()) charge(extent(right).weight);
  Value result = apply(node.op, left, right);
  charge(shallow_weight(result));
  return result;
}

Value Interpreter::evaluate(const Logical& node, const ScopePtr& scope) {
  Value left = evaluate(*node.left, scope);
  return is_truthy(left) == node.is_or ? left : evaluate(*node.right, scope);
}

Value Interpreter::evaluate(const jinja::Compare& node, const ScopePtr& scope) {
  Value left = evaluate(*node.first, scope);
  for (const auto& [op, operand] : node.rest) {
    Value right = evaluate(*operand, scope);
    const bool looks_inside = op == Comparison::In || op == Comparison::NotIn;
    charge(looks_inside ? extent(right).weight + extent(left).weight
                        : std::min(extent(left).weight, extent(right).weight));
    if (!compare(op, left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate(const Concat& node, const ScopePtr& scope) {
  std::string text;
  for (const Value& part : evaluate_all(node.parts, scope)) {
    charge(extent(part).weight);
    text += to_string(part);
    check_string_size(text.size());
  }
  return text;
}

Value Interpreter::evaluate(const Conditional& node, const ScopePtr& scope) {
  if (is_truthy(evaluate(*node.test, scope))) return evaluate(*node.then, scope);
  if (node.otherwise != nullptr) return evaluate(*node.otherwise, scope);
  return Value::undefined("the inline if-expression evaluated to false and no else section was defined.");
}

Value Interpreter::evaluate(const GetAttribute& node, const ScopePtr& scope) {
  return get_attribute(evaluate(*node.object, scope), node.name);
}

Value Interpreter::evaluate(const GetItem& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.object, scope);
  const Value key = evaluate(*node.key, scope);
  charge(extent(key).weight + (object.is_string() ? shallow_weight(object) : 0));
  return get_item(object, key);
}

Value Interpreter::evaluate(const GetSlice& node, const ScopePtr& scope) {
  const auto bound = [&](const ExpressionPtr& part) { return part == nullptr ? Value() : evaluate(*part, scope); };
  const Value object = evaluate(*node.object, scope);
  const Value start = bound(node.start);
  const Value stop = bound(node.stop);
  const Value step = bound(node.step);
  charge(shallow_weight(object));
  return get_slice(object, start, stop, step);
}

Arguments Interpreter::evaluate_arguments(const CallArguments& arguments, const ScopePtr& scope) {
  Arguments values;
  values.positional = evaluate_all(arguments.positional, scope);
  const auto add_keyword = [&](std::string name, Value value) {
    const bool is_known = std::any_of(values.keyword.begin(), values.keyword.end(),
                                      [&](const auto& entry) { return entry.first == name; });
    if (is_known) fail(fmt::format("got multiple values for keyword argument '{}'", name));
    values.keyword.emplace_back(std::move(name), std::move(value));
  };
  for (const auto& [name, value] : arguments.keyword) add_keyword(name, evaluate(*value, scope));
  if (arguments.star != nullptr) {
    Items more = collect(evaluate(*arguments.star, scope));
    values.positional.insert(values.positional.end(), more.begin(), more.end());
  }
  if (arguments.double_star != nullptr) {
    const Value more = evaluate(*arguments.double_star, scope);
    const auto* dict = more.get<Dict>();
    if (dict == nullptr) fail(fmt::format("argument after ** must be a mapping, not {}", type_name(more)));
    if (dict->entries().size() > 1000) fail("more than 1000 keyword arguments");
    for (const auto& [key, value] : dict->entries()) {
      if (!key.is_string()) fail("keywords must be strings");
      add_keyword(*key.string(), value);
    }
  }
  return values;
}

Value Interpreter::evaluate(const jinja::Call& node, const ScopePtr& scope) {
  const Value callee = evaluate(*node.callee, scope);
  return call(callee, evaluate_arguments(node.arguments, scope));
}

Value Interpreter::call(const Value& callee, Arguments arguments) {
  const Depth depth(*this);
  if (const auto* missing = callee.get<Undefined>()) fail(missing->message);
  Object* object = callee.object();
  if (object == nullptr) fail(fmt::format("'{}' object is not callable", type_name(callee)));
  for (const Value& argument : arguments.positional) charge(shallow_weight(argument));
  Value result = object->call(*this, std::move(arguments));
  charge(shallow_weight(result));
  return result;
}

Value Interpreter::evaluate(const jinja::Filter& node, const ScopePtr& scope) {
  const Value subject = node.subject == nullptr ? Value(*block_text_) : evaluate(*node.subject, scope);
  return call_filter(node.name, subject, evaluate_arguments(node.arguments, scope));
}

Value Interpreter::evaluate(const jinja::Test& node, const ScopePtr& scope) {
  const Value subject = evaluate(*node.subject, scope);
  return call_test(node.name, subject, evaluate_arguments(node.arguments, scope));
}

Value Interpreter::call_filter(std::string_view name, const Value& subject, Arguments arguments) {
  const Depth depth(*this);
  const FilterFunction filter = find_filter(name);
  if (filter == nullptr) fail(fmt::format("No filter named '{}'.", name));
  charge(shallow_weight(subject));
  Value result = filter(*this, subject, arguments);
  charge(shallow_weight(result));
  return result;
}

bool Interpreter::call_test(std::string_view name, const Value& subject, Arguments arguments) {
  const TestFunction test = find_test(name);
  if (test == nullptr) fail(fmt::format("No test named '{}'.", name));
  charge(1);
  return test(*this, subject, arguments);
}

}  // namespace nibble::tokenizer::jinja
