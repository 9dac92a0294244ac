#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

/// A test of the value alone.
template <bool (*holds)(const Value&)>
bool unary(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("test", arguments, {});
  return holds(subject);
}

template <Comparison op>
bool comparison(Interpreter& interpreter, const Value& subject, Arguments& arguments) {
  const Bound bound("test", arguments, {"/other"}, 1);
  const Value other = bound.value(0);
  interpreter.charge(op == Comparison::In ? extent(other).weight
                                          : std::min(extent(subject).weight, extent(other).weight));
  return compare(op, subject, other);
}

bool has_remainder(const Value& subject, const Value& divisor, std::int64_t remainder) {
  return equals(apply(BinaryOperator::Modulo, subject, divisor), Value(remainder));
}

bool divisible_by(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("divisibleby", arguments, {"num"}, 1);
  return has_remainder(subject, bound.value(0), 0);
}

bool same_as(Interpreter& /*interpreter*/, const Value& subject, Arguments& arguments) {
  const Bound bound("sameas", arguments, {"other"}, 1);
  return is_same(subject, bound.value(0));
}

bool is_odd(const Value& subject) {
  return has_remainder(subject, Value(2), 1);
}
bool is_even(const Value& subject) {
  return has_remainder(subject, Value(2), 0);
}
bool is_defined(const Value& subject) {
  return !subject.is_undefined();
}
bool is_undefined(const Value& subject) {
  return subject.is_undefined();
}
bool is_none(const Value& subject) {
  return subject.is_none();
}
bool is_boolean(const Value& subject) {
  return subject.is_bool();
}
bool is_true(const Value& subject) {
  return subject.is_bool() && is_truthy(subject);
}
bool is_false(const Value& subject) {
  return subject.is_bool() && !is_truthy(subject);
}
bool is_integer(const Value& subject) {
  return subject.integer().has_value() && !subject.is_bool();
}
bool is_float(const Value& subject) {
  return subject.is_float();
}
bool is_number(const Value& subject) {
  return subject.number().has_value();
}
bool is_string(const Value& subject) {
  return subject.is_string();
}
bool is_mapping(const Value& subject) {
  return subject.get<Dict>() != nullptr;
}
bool is_escaped(const Value& subject) {
  return subject.is_markup();
}
bool is_lower(const Value& subject) {
  return text::is_all_lower(to_string(subject));
}
bool is_upper(const Value& subject) {
  return text::is_all_upper(to_string(subject));
}
bool is_filter(const Value& subject) {
  return subject.is_string() && find_filter(*subject.string()) != nullptr;
}
bool is_test(const Value& subject) {
  return subject.is_string() && find_test(*subject.string()) != nullptr;
}
/// len() and [] both work: of Python's iterables all but generators, views and Undefined's failing [].
bool is_sequence(const Value& subject) {
  return subject.is_string() || subject.sequence() != nullptr || subject.get<Dict>() != nullptr ||
         subject.get<Range>() != nullptr || subject.is_undefined();
}

struct Row {
  std::string_view name;
  TestFunction function;
};
constexpr auto kTests = std::to_array<Row>({
    {"!=", comparison<Comparison::NotEqual>},
    {"<", comparison<Comparison::Less>},
    {"<=", comparison<Comparison::LessEqual>},
    {"==", comparison<Comparison::Equal>},
    {">", comparison<Comparison::Greater>},
    {">=", comparison<Comparison::GreaterEqual>},
    {"boolean", unary<is_boolean>},
    {"callable", unary<is_callable>},
    {"defined", unary<is_defined>},
    {"divisibleby", divisible_by},
    {"eq", comparison<Comparison::Equal>},
    {"equalto", comparison<Comparison::Equal>},
    {"escaped", unary<is_escaped>},
    {"even", unary<is_even>},
    {"false", unary<is_false>},
    {"filter", unary<is_filter>},
    {"float", unary<is_float>},
    {"ge", comparison<Comparison::GreaterEqual>},
    {"greaterthan", comparison<Comparison::Greater>},
    {"gt", comparison<Comparison::Greater>},
    {"in", comparison<Comparison::In>},
    {"integer", unary<is_integer>},
    {"iterable", unary<is_iterable>},
    {"le", comparison<Comparison::LessEqual>},
    {"lessthan", comparison<Comparison::Less>},
    {"lower", unary<is_lower>},
    {"lt", comparison<Comparison::Less>},
    {"mapping", unary<is_mapping>},
    {"ne", comparison<Comparison::NotEqual>},
    {"none", unary<is_none>},
    {"number", unary<is_number>},
    {"odd", unary<is_odd>},
    {"sameas", same_as},
    {"sequence", unary<is_sequence>},
    {"string", unary<is_string>},
    {"test", unary<is_test>},
    {"true", unary<is_true>},
    {"undefined", unary<is_undefined>},
    {"upper", unary<is_upper>},
});

}  // namespace

TestFunction find_test(std::string_view name) {
  const auto* found = std::find_if(kTests.begin(), kTests.end(), [&](const Row& row) { return row.name == name; });
  return found == kTests.end() ? nullptr : found->function;
}

}  // namespace nibble::tokenizer::jinja
