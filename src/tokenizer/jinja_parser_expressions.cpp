#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_parser.h"

namespace nibble::tokenizer::jinja {

ExpressionPtr Parser::parse_expression() {
  const Nesting nesting(*this);
  const std::size_t mark = unknown_names_.size();
  int line = current().line;
  ExpressionPtr node = parse_without_condition();
  while (skip_name("if")) {
    count_link();
    ExpressionPtr test = parse_without_condition();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    node = make(line, Conditional{std::move(test), std::move(node), std::move(otherwise)});
    line = current().line;
    forget_unknown_since(mark);
  }
  return node;
}

ExpressionPtr Parser::parse_tuple(Conditions conditions) {
  const int line = current().line;
  const auto parse_item = [&] {
    return conditions == Conditions::Allowed ? parse_expression() : parse_without_condition();
  };
  if (is_tuple_end()) fail_here(fmt::format("Expected an expression, got '{}'", current().text));
  ExpressionPtr first = parse_item();
  if (!at_operator(",")) return first;
  TupleLiteral tuple;
  tuple.items.push_back(std::move(first));
  while (skip_operator(",")) {
    if (is_tuple_end() || at_name("recursive")) break;
    tuple.items.push_back(parse_item());
  }
  return make(line, std::move(tuple));
}

bool Parser::is_tuple_end() const {
  return at(Token::Kind::VariableEnd) || at(Token::Kind::BlockEnd) || at(Token::Kind::End) || at_operator(")");
}

ExpressionPtr Parser::parse_without_condition() {
  int line = current().line;
  ExpressionPtr left = parse_and();
  while (skip_name("or")) {
    count_link();
    left = make(line, Logical{true, std::move(left), parse_and()});
    line = current().line;
  }
  return left;
}

ExpressionPtr Parser::parse_and() {
  int line = current().line;
  ExpressionPtr left = parse_not();
  while (skip_name("and")) {
    count_link();
    left = make(line, Logical{false, std::move(left), parse_not()});
    line = current().line;
  }
  return left;
}

ExpressionPtr Parser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(*this);
  const int line = take().line;
  return make(line, Unary{UnaryOperator::Not, parse_not()});
}

ExpressionPtr Parser::parse_compare() {
  static constexpr std::array<std::pair<std::string_view, Comparison>, 6> kOperators = {
      {{"==", Comparison::Equal},
       {"!=", Comparison::NotEqual},
       {"<", Comparison::Less},
       {"<=", Comparison::LessEqual},
       {">", Comparison::Greater},
       {">=", Comparison::GreaterEqual}}};
  const int line = current().line;
  ExpressionPtr first = parse_sum();
  Compare compare{nullptr, {}};
  while (true) {
    const auto* known =
        std::find_if(kOperators.begin(), kOperators.end(), [&](const auto& row) { return at_operator(row.first); });
    if (known != kOperators.end()) {
      take();
      compare.rest.emplace_back(known->second, parse_sum());
    } else if (skip_name("in")) {
      compare.rest.emplace_back(Comparison::In, parse_sum());
    } else if (at_name("not") && look_ahead().kind == Token::Kind::Name && look_ahead().text == "in") {
      take();
      take();
      compare.rest.emplace_back(Comparison::NotIn, parse_sum());
    } else {
      break;
    }
  }
  if (compare.rest.empty()) return first;
  compare.first = std::move(first);
  return make(line, std::move(compare));
}

ExpressionPtr Parser::parse_sum() {
  const int line = current().line;
  ExpressionPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    count_link();
    const auto op = take().text == "+" ? BinaryOperator::Add : BinaryOperator::Subtract;
    left = make(line, Binary{op, std::move(left), parse_concat()});
  }
  return left;
}

ExpressionPtr Parser::parse_concat() {
  const int line = current().line;
  ExpressionPtr first = parse_product();
  if (!at_operator("~")) return first;
  Concat concat;
  concat.parts.push_back(std::move(first));
  while (skip_operator("~")) concat.parts.push_back(parse_product());
  return make(line, std::move(concat));
}

ExpressionPtr Parser::parse_product() {
  static constexpr std::array<std::pair<std::string_view, BinaryOperator>, 4> kOperators = {
      {{"*", BinaryOperator::Multiply},
       {"/", BinaryOperator::Divide},
       {"//", BinaryOperator::FloorDivide},
       {"%", BinaryOperator::Modulo}}};
  const int line = current().line;
  ExpressionPtr left = parse_power();
  while (true) {
    const auto* known =
        std::find_if(kOperators.begin(), kOperators.end(), [&](const auto& row) { return at_operator(row.first); });
    if (known == kOperators.end()) return left;
    count_link();
    take();
    left = make(line, Binary{known->second, std::move(left), parse_power()});
  }
}

ExpressionPtr Parser::parse_power() {
  const int line = current().line;
  ExpressionPtr left = parse_unary();
  while (skip_operator("**")) {  // left to right, unlike Python
    count_link();
    left = make(line, Binary{BinaryOperator::Power, std::move(left), parse_unary()});
  }
  return left;
}

ExpressionPtr Parser::parse_unary() {
  return parse_filters_and_tests(parse_signed());
}

ExpressionPtr Parser::parse_signed() {
  const Nesting nesting(*this);
  if (!at_operator("-") && !at_operator("+")) return parse_postfix(parse_primary());
  const Token sign = take();
  const auto op = sign.text == "-" ? UnaryOperator::Minus : UnaryOperator::Plus;
  return parse_postfix(make(sign.line, Unary{op, parse_signed()}));
}

ExpressionPtr Parser::parse_primary() {
  const Token& token = current();
  switch (token.kind) {
    case Token::Kind::Name: return parse_name();
    case Token::Kind::String: {
      const int line = token.line;
      std::string text;
      while (at(Token::Kind::String)) text += take().text;  // adjacent literals are one
      return make(line, Constant{Value(std::move(text))});
    }
    case Token::Kind::Integer: {
      const Token number = take();
      return make(number.line, Constant{Value(number.integer)});
    }
    case Token::Kind::Float: {
      const Token number = take();
      return make(number.line, Constant{Value(number.number)});
    }
    case Token::Kind::Operator:
      if (token.text == "(") return parse_parenthesized();
      if (token.text == "[") return parse_list();
      if (token.text == "{") return parse_dict();
      break;
    default: break;
  }
  fail_here(at(Token::Kind::End) ? std::string("unexpected end of template")
                                 : fmt::format("unexpected '{}'", token.text));
}

ExpressionPtr Parser::parse_name() {
  const Token name = take();
  if (name.text == "true" || name.text == "True") return make(name.line, Constant{Value(true)});
  if (name.text == "false" || name.text == "False") return make(name.line, Constant{Value(false)});
  if (name.text == "none" || name.text == "None") return make(name.line, Constant{Value()});
  note_use(name.text);
  return make(name.line, Name{intern(name.text)});
}

ExpressionPtr Parser::parse_parenthesized() {
  const int line = take().line;
  if (skip_operator(")")) return make(line, TupleLiteral{});
  ExpressionPtr node = parse_tuple(Conditions::Allowed);
  expect_operator(")");
  return node;
}

ExpressionPtr Parser::parse_list() {
  const int line = take().line;
  ListLiteral list;
  while (!at_operator("]")) {
    if (!list.items.empty()) expect_operator(",");
    if (at_operator("]")) break;
    list.items.push_back(parse_expression());
  }
  expect_operator("]");
  return make(line, std::move(list));
}

ExpressionPtr Parser::parse_dict() {
  const int line = take().line;
  DictLiteral dict;
  while (!at_operator("}")) {
    if (!dict.entries.empty()) expect_operator(",");
    if (at_operator("}")) break;
    ExpressionPtr key = parse_expression();
    expect_operator(":");
    dict.entries.emplace_back(std::move(key), parse_expression());
  }
  expect_operator("}");
  return make(line, std::move(dict));
}

ExpressionPtr Parser::parse_postfix(ExpressionPtr node) {
  for (;; count_link()) {
    if (at_operator(".") || at_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_operator("(")) {
      const int line = current().line;
      node = make(line, Call{std::move(node), parse_arguments()});
    } else {
      return node;
    }
  }
}

ExpressionPtr Parser::parse_subscript(ExpressionPtr node) {
  const Token opening = take();
  if (opening.text == ".") {
    const Token attribute = take();
    if (attribute.kind == Token::Kind::Name) return make(opening.line, GetAttribute{std::move(node), attribute.text});
    if (attribute.kind != Token::Kind::Integer) fail_at(attribute.line, "expected name or number");
    ExpressionPtr key = make(attribute.line, Constant{Value(attribute.integer)});
    return make(opening.line, GetItem{std::move(node), std::move(key)});
  }
  ExpressionPtr start = at_operator(":") ? nullptr : parse_expression();
  if (start != nullptr && !at_operator(":")) {
    if (at_operator(",")) {
      TupleLiteral key;
      key.items.push_back(std::move(start));
      while (skip_operator(",")) key.items.push_back(parse_expression());
      start = make(opening.line, std::move(key));
    }
    expect_operator("]");
    return make(opening.line, GetItem{std::move(node), std::move(start)});
  }
  take();
  const auto parse_bound = [&] { return at_operator(":") || at_operator("]") ? nullptr : parse_expression(); };
  GetSlice slice{std::move(node), std::move(start), parse_bound(), nullptr};
  if (skip_operator(":")) slice.step = parse_bound();
  expect_operator("]");
  return make(opening.line, std::move(slice));
}

ExpressionPtr Parser::parse_filters_and_tests(ExpressionPtr node) {
  for (;; count_link()) {
    if (at_operator("|")) {
      take();
      node = parse_filter(std::move(node));
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_operator("(")) {
      const int line = current().line;
      node = make(line, Call{std::move(node), parse_arguments()});
    } else {
      return node;
    }
  }
}

std::string Parser::parse_dotted_name() {
  std::string name = expect(Token::Kind::Name, "a filter or test name").text;
  while (skip_operator(".")) name += "." + expect(Token::Kind::Name, "a name").text;
  return name;
}

ExpressionPtr Parser::parse_filter(ExpressionPtr subject) {
  const int line = current().line;
  std::string name = parse_dotted_name();
  if (find_filter(name) == nullptr) unknown_names_.push_back({fmt::format("No filter named '{}'.", name), line});
  CallArguments arguments = at_operator("(") ? parse_arguments() : CallArguments{};
  return make(line, Filter{std::move(subject), std::move(name), std::move(arguments)});
}

ExpressionPtr Parser::parse_filter_chain(ExpressionPtr subject) {
  while (skip_operator("|")) {
    count_link();
    subject = parse_filter(std::move(subject));
  }
  return subject;
}

ExpressionPtr Parser::parse_test(ExpressionPtr subject) {
  const int line = take().line;
  const bool is_negated = skip_name("not");
  std::string name = parse_dotted_name();
  if (find_test(name) == nullptr) unknown_names_.push_back({fmt::format("No test named '{}'.", name), line});
  CallArguments arguments;
  const bool starts_operand = at(Token::Kind::Name) || at(Token::Kind::String) || at(Token::Kind::Integer) ||
                              at(Token::Kind::Float) || at_operator("[") || at_operator("{");
  if (at_operator("(")) {
    arguments = parse_arguments();
  } else if (starts_operand && !at_name("else") && !at_name("or") && !at_name("and")) {
    if (at_name("is")) fail_here("You cannot chain multiple tests with is");
    arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  ExpressionPtr node = make(line, Test{std::move(subject), std::move(name), std::move(arguments)});
  return is_negated ? make(line, Unary{UnaryOperator::Not, std::move(node)}) : std::move(node);
}

CallArguments Parser::parse_arguments() {
  const int line = take().line;
  CallArguments arguments;
  const auto ensure = [&](bool is_valid) {
    if (!is_valid) fail_at(line, "invalid syntax for function call expression");
  };
  bool needs_comma = false;
  while (!at_operator(")")) {
    if (needs_comma) expect_operator(",");
    if (needs_comma && at_operator(")")) break;
    if (skip_operator("*")) {
      ensure(arguments.star == nullptr && arguments.double_star == nullptr);
      arguments.star = parse_expression();
    } else if (skip_operator("**")) {
      ensure(arguments.double_star == nullptr);
      arguments.double_star = parse_expression();
    } else if (at(Token::Kind::Name) && look_ahead().kind == Token::Kind::Operator && look_ahead().text == "=") {
      ensure(arguments.double_star == nullptr);
      std::string key = take().text;
      take();
      arguments.keyword.emplace_back(std::move(key), parse_expression());
    } else {
      ensure(arguments.star == nullptr && arguments.double_star == nullptr && arguments.keyword.empty());
      arguments.positional.push_back(parse_expression());
    }
    needs_comma = true;
  }
  expect_operator(")");
  return arguments;
}

}  // namespace nibble::tokenizer::jinja
