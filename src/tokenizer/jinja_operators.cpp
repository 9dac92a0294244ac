#include "tokenizer/jinja_operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

std::string_view symbol(BinaryOperator op) {
  switch (op) {
    case BinaryOperator::Add: return "+";
    case BinaryOperator::Subtract: return "-";
    case BinaryOperator::Multiply: return "*";
    case BinaryOperator::Divide: return "/";
    case BinaryOperator::FloorDivide: return "//";
    case BinaryOperator::Modulo: return "%";
    case BinaryOperator::Power: return "**";
  }
  return "?";
}

[[noreturn]] void fail_overflow() {
  fail("an integer result does not fit 64 bits");
}

std::int64_t floor_divide(std::int64_t left, std::int64_t right) {
  if (left == INT64_MIN && right == -1) fail_overflow();
  const std::int64_t quotient = left / right;
  return left % right != 0 && (left < 0) != (right < 0) ? quotient - 1 : quotient;
}

std::int64_t modulo(std::int64_t left, std::int64_t right) {
  if (right == -1) return 0;
  const std::int64_t rest = left % right;
  return rest != 0 && (rest < 0) != (right < 0) ? rest + right : rest;
}

double modulo(double left, double right) {
  const double rest = std::fmod(left, right);
  if (rest == 0) return std::copysign(0.0, right);
  return (rest < 0) != (right < 0) ? rest + right : rest;
}

double floor_divide(double left, double right) {
  const double exact = (left - modulo(left, right)) / right;
  if (exact == 0) return std::copysign(0.0, left / right);
  const double floored = std::floor(exact);
  return exact - floored > 0.5 ? floored + 1 : floored;
}

std::int64_t power(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  while (true) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    exponent >>= 1;
    if (exponent == 0) return result;
    if (__builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
}

Value integer_operation(BinaryOperator op, std::int64_t left, std::int64_t right) {
  std::int64_t result = 0;
  bool is_overflow = false;
  switch (op) {
    case BinaryOperator::Add: is_overflow = __builtin_add_overflow(left, right, &result); break;
    case BinaryOperator::Subtract: is_overflow = __builtin_sub_overflow(left, right, &result); break;
    case BinaryOperator::Multiply: is_overflow = __builtin_mul_overflow(left, right, &result); break;
    case BinaryOperator::Divide: return static_cast<double>(left) / static_cast<double>(right);
    case BinaryOperator::FloorDivide: return floor_divide(left, right);
    case BinaryOperator::Modulo: return modulo(left, right);
    case BinaryOperator::Power:
      if (right < 0) return std::pow(static_cast<double>(left), static_cast<double>(right));
      return power(left, right);
  }
  if (is_overflow) fail_overflow();
  return result;
}

Value float_operation(BinaryOperator op, double left, double right) {
  switch (op) {
    case BinaryOperator::Add: return left + right;
    case BinaryOperator::Subtract: return left - right;
    case BinaryOperator::Multiply: return left * right;
    case BinaryOperator::Divide: return left / right;
    case BinaryOperator::FloorDivide: return floor_divide(left, right);
    case BinaryOperator::Modulo: return modulo(left, right);
    case BinaryOperator::Power: break;
  }
  const double result = std::pow(left, right);
  if (std::isnan(result) && !std::isnan(left) && !std::isnan(right)) fail("complex numbers are not supported");
  if (std::isinf(result) && std::isfinite(left) && std::isfinite(right)) fail("(34, 'Numerical result out of range')");
  return result;
}

std::optional<Value> numeric_operation(BinaryOperator op, const Value& left, const Value& right) {
  const auto left_number = left.number();
  const auto right_number = right.number();
  if (!left_number || !right_number) return std::nullopt;
  const bool divides =
      op == BinaryOperator::Divide || op == BinaryOperator::FloorDivide || op == BinaryOperator::Modulo;
  if (divides && *right_number == 0) fail("division by zero");
  if (op == BinaryOperator::Power && *left_number == 0 && *right_number < 0) {
    fail("0.0 cannot be raised to a negative power");
  }
  const auto left_whole = left.integer();
  const auto right_whole = right.integer();
  if (left_whole && right_whole) return integer_operation(op, *left_whole, *right_whole);
  return float_operation(op, *left_number, *right_number);
}

Value add_strings(const Value& left, const Value& right) {
  const std::string& a = *left.string();
  const std::string& b = *right.string();
  check_string_size(a.size() + b.size());
  if (!left.is_markup() && !right.is_markup()) return a + b;
  return Value::markup((left.is_markup() ? a : text::escape_html(a)) + (right.is_markup() ? b : text::escape_html(b)));
}

Value make_like(const Value& model, Items items) {
  return model.get<List>() != nullptr ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value repeat(const Value& value, std::int64_t times) {
  if (const std::string* text = value.string()) {
    std::string repeated = text::repeat(*text, times);
    return value.is_markup() ? Value::markup(std::move(repeated)) : Value(std::move(repeated));
  }
  const Items& items = *value.sequence();
  const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(0, times));
  if (!items.empty() && count > 1'000'000 / items.size())
    fail("a repeated list of more than a million items is refused");
  Items repeated;
  repeated.reserve(items.empty() ? 0 : items.size() * count);
  for (std::uint64_t i = 0; i < count && !items.empty(); ++i)
    repeated.insert(repeated.end(), items.begin(), items.end());
  return make_like(value, std::move(repeated));
}

bool is_repeatable(const Value& value) {
  return value.is_string() || value.sequence() != nullptr;
}

std::optional<Value> sequence_operation(BinaryOperator op, const Value& left, const Value& right) {
  if (op == BinaryOperator::Add) {
    if (left.is_string() && right.is_string()) return add_strings(left, right);
    const bool are_alike = (left.get<List>() != nullptr && right.get<List>() != nullptr) ||
                           (left.get<Tuple>() != nullptr && right.get<Tuple>() != nullptr);
    if (!are_alike) return std::nullopt;
    Items joined = *left.sequence();
    joined.insert(joined.end(), right.sequence()->begin(), right.sequence()->end());
    return make_like(left, std::move(joined));
  }
  if (op == BinaryOperator::Multiply) {
    if (is_repeatable(left) && right.integer()) return repeat(left, *right.integer());
    if (is_repeatable(right) && left.integer()) return repeat(right, *left.integer());
  }
  if (op == BinaryOperator::Modulo && left.is_string()) {
    std::string formatted = format_percent(*left.string(), right);
    return left.is_markup() ? Value::markup(std::move(formatted)) : Value(std::move(formatted));
  }
  return std::nullopt;
}

Value attribute_error(const Value& object, const Value& name) {
  const std::string type = object.is_none() ? "None" : type_name(object) + " object";
  if (name.is_string()) return Value::undefined(fmt::format("'{}' has no attribute {}", type, repr(name)));
  return Value::undefined(fmt::format("{} has no element {}", type, repr(name)));
}

/// obj[key] of Python; nullopt where it raises.
std::optional<Value> subscript(const Value& object, const Value& key) {
  if (const auto* dict = object.get<Dict>()) {
    if (key.get<List>() != nullptr || key.get<Dict>() != nullptr) return std::nullopt;
    const Value* found = dict->find(key);
    return found == nullptr ? std::nullopt : std::optional<Value>(*found);
  }
  const auto whole = key.integer();
  const bool is_indexable = object.is_string() || object.sequence() != nullptr || object.get<Range>() != nullptr;
  if (!whole || !is_indexable) return std::nullopt;
  const std::int64_t size = length(object).value_or(0);
  const std::int64_t idx = *whole < 0 ? *whole + size : *whole;
  if (idx < 0 || idx >= size) return std::nullopt;
  if (const Items* items = object.sequence()) return (*items)[static_cast<std::size_t>(idx)];
  if (const auto* range = object.get<Range>()) return range->start + idx * range->step;
  const std::string& text = *object.string();
  const std::size_t begin = text::byte_offset(text, static_cast<std::size_t>(idx));
  return Value(std::string_view(text).substr(begin, text::char_size(text, begin)));
}

/// getattr(object, name) of Python in the sandbox; nullopt where there is no such attribute.
std::optional<Value> python_attribute(const Value& object, std::string_view name) {
  if (Object* own = object.object()) {
    if (auto found = own->attribute(name)) return found;
  } else if (auto method = find_method(object, name)) {
    return method;
  }
  // Every Python object has these; the sandbox hands out an Undefined that fails when it is used.
  constexpr std::string_view kInternals[] = {
      "__class__",  "__doc__",          "__init__",    "__new__",  "__dict__", "__module__",    "__subclasshook__",
      "__reduce__", "__getattribute__", "__globals__", "__call__", "__mro__",  "__subclasses__"};
  if (std::find(std::begin(kInternals), std::end(kInternals), name) != std::end(kInternals)) {
    return Value::undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
  }
  return std::nullopt;
}

}  // namespace

Value apply(BinaryOperator op, const Value& left, const Value& right) {
  if (auto result = numeric_operation(op, left, right)) return *std::move(result);
  if (auto result = sequence_operation(op, left, right)) return *std::move(result);
  for (const Value* side : {&left, &right}) {
    if (const auto* missing = side->get<Undefined>()) fail(missing->message);
  }
  fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol(op), type_name(left), type_name(right)));
}

Value apply(UnaryOperator op, const Value& operand) {
  if (op == UnaryOperator::Not) return !is_truthy(operand);
  if (const auto whole = operand.integer()) {
    if (op == UnaryOperator::Plus) return *whole;
    return integer_operation(BinaryOperator::Subtract, 0, *whole);
  }
  if (const auto number = operand.number()) return op == UnaryOperator::Plus ? *number : -*number;
  if (const auto* missing = operand.get<Undefined>()) fail(missing->message);
  fail(fmt::format("bad operand type for unary {}: '{}'", op == UnaryOperator::Plus ? '+' : '-', type_name(operand)));
}

bool compare(Comparison op, const Value& left, const Value& right) {
  const auto is_nan = [](const Value& value) { return value.is_float() && std::isnan(*value.number()); };
  switch (op) {
    case Comparison::Equal: return equals(left, right);
    case Comparison::NotEqual: return !equals(left, right);
    case Comparison::Less: return less_than(left, right, "<");
    case Comparison::Greater: return less_than(right, left, ">");
    case Comparison::LessEqual: return !less_than(right, left, "<=") && !is_nan(left) && !is_nan(right);
    case Comparison::GreaterEqual: return !less_than(left, right, ">=") && !is_nan(left) && !is_nan(right);
    case Comparison::In: return contains(right, left);
    case Comparison::NotIn: return !contains(right, left);
  }
  return false;
}

Value get_attribute(const Value& object, std::string_view name) {
  if (const auto* missing = object.get<Undefined>()) fail(missing->message);
  if (auto found = python_attribute(object, name)) return *std::move(found);
  if (auto found = subscript(object, Value(name))) return *std::move(found);
  return attribute_error(object, Value(name));
}

Value get_item(const Value& object, const Value& key) {
  if (const auto* missing = object.get<Undefined>()) fail(missing->message);
  if (auto found = subscript(object, key)) return *std::move(found);
  if (const std::string* name = key.string()) {
    if (auto found = python_attribute(object, *name)) return *std::move(found);
  }
  return attribute_error(object, key);
}

Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (const auto* missing = object.get<Undefined>()) fail(missing->message);
  const bool is_sliceable = object.is_string() || object.sequence() != nullptr || object.get<Range>() != nullptr;
  if (!is_sliceable) fail(fmt::format("'{}' object cannot be sliced", type_name(object)));
  const auto bound = [](const Value& value) -> std::optional<std::int64_t> {
    if (value.is_none()) return std::nullopt;
    if (const auto whole = value.integer()) return whole;
    fail("slice indices must be integers or None");
  };
  const std::int64_t by = bound(step).value_or(1);
  if (by == 0) fail("slice step cannot be zero");
  const std::int64_t size = *length(object);
  const auto clamp = [&](std::int64_t idx) {
    if (idx < 0) idx = idx < -size ? -1 : idx + size;
    return by > 0 ? std::clamp<std::int64_t>(idx, 0, size) : std::clamp<std::int64_t>(idx, -1, size - 1);
  };
  const auto from = bound(start);
  const auto to = bound(stop);
  const std::int64_t begin = from ? clamp(*from) : (by > 0 ? 0 : size - 1);
  const std::int64_t end = to ? clamp(*to) : (by > 0 ? size : -1);
  const auto like_object = [&](std::string chosen) {
    return object.is_markup() ? Value::markup(std::move(chosen)) : Value(std::move(chosen));
  };
  if (by == 1 && object.is_string()) {
    std::string_view rest = *object.string();
    rest.remove_prefix(text::byte_offset(rest, static_cast<std::size_t>(begin)));
    const auto count = static_cast<std::size_t>(std::max<std::int64_t>(0, end - begin));
    return like_object(std::string(rest.substr(0, text::byte_offset(rest, count))));
  }
  if (const auto* range = object.get<Range>()) {
    const std::int64_t distance = by > 0 ? end - begin : begin - end;
    const std::int64_t pace = by > 0 ? by : by == INT64_MIN ? INT64_MAX : -by;
    const std::int64_t count = distance <= 0 ? 0 : (distance - 1) / pace + 1;
    const std::int64_t step_size = count > 1 ? range->step * by : range->step;
    return Ref<Range>(std::make_shared<const Range>(Range{range->start + begin * range->step, step_size, count}));
  }
  std::vector<std::size_t> wanted;
  for (std::int64_t i = begin; by > 0 ? i < end : i > end;) {
    wanted.push_back(static_cast<std::size_t>(i));
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  if (const Items* items = object.sequence()) {
    Items chosen;
    for (const std::size_t i : wanted) chosen.push_back((*items)[i]);
    return make_like(object, std::move(chosen));
  }
  std::string chosen;
  const auto characters = text::characters(*object.string());
  for (const std::size_t i : wanted) chosen += characters[i];
  return like_object(std::move(chosen));
}

}  // namespace nibble::tokenizer::jinja
