#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_lexer.h"

namespace nibble::tokenizer::jinja {

/// Parses a template as jinja2 3.1 does with the loopcontrols extension and a `generation` tag.
/// Errors: InvalidArgument "line N: …" for syntax, unknown filters and tests, and nesting beyond the limit.
Template parse(std::string_view source);

/// Recursive descent over the tokens, precedences as in jinja2's parser. Expressions: jinja_parser_expressions.cpp.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Template run() &&;

 private:
  using EndTags = std::vector<std::string_view>;
  class Nesting;
  struct UnknownName {
    std::string message;
    int line;
  };

  // Statements.
  Body parse_body(const EndTags& end_tags);
  Body parse_block(const EndTags& end_tags);
  Body parse_own_frame(const EndTags& end_tags);
  Statement parse_statement();
  Statement::Node parse_tag(const std::string& tag);
  Statement::Node parse_print();
  Statement::Node parse_if();
  Statement::Node parse_for();
  Statement::Node parse_set();
  Statement::Node parse_macro();
  Statement::Node parse_call_block();
  Statement::Node parse_filter_block();
  Statement::Node parse_with();
  Statement::Node parse_named_block();
  Statement::Node parse_loop_control(const std::string& tag);
  void parse_signature(MacroDefinition& definition);
  void parse_macro_body(MacroDefinition& definition, const EndTags& end_tags);
  void check_special_parameters(MacroDefinition& definition) const;
  Target parse_target();
  Target parse_single_target();

  // Expressions.
  ExpressionPtr parse_expression();
  ExpressionPtr parse_without_condition();
  /// `a, b`: a tuple; one expression alone stays itself.
  enum class Conditions : std::uint8_t { Allowed, Refused };
  ExpressionPtr parse_tuple(Conditions conditions);
  bool is_tuple_end() const;
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary();
  ExpressionPtr parse_signed();
  ExpressionPtr parse_primary();
  ExpressionPtr parse_name();
  ExpressionPtr parse_parenthesized();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_filters_and_tests(ExpressionPtr node);
  ExpressionPtr parse_filter(ExpressionPtr subject);
  ExpressionPtr parse_filter_chain(ExpressionPtr subject);
  ExpressionPtr parse_test(ExpressionPtr subject);
  CallArguments parse_arguments();
  std::string parse_dotted_name();

  // Tokens.
  const Token& current() const { return tokens_[position_]; }
  const Token& look_ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  bool at(Token::Kind kind) const { return current().kind == kind; }
  bool at_operator(std::string_view text) const { return at(Token::Kind::Operator) && current().text == text; }
  bool at_name(std::string_view text) const { return at(Token::Kind::Name) && current().text == text; }
  Token take();
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_operator(std::string_view text);
  Token expect(Token::Kind kind, std::string_view what);
  [[noreturn]] void fail_here(std::string_view message) const { fail_at(current().line, message); }

  template <class Node>
  ExpressionPtr make(int line, Node node);
  NameId intern(const std::string& name);
  void note_use(const std::string& name);
  /// Operators, subscripts and filters in a row make a tree as deep as they are many: bounded per tag.
  void count_link() {
    constexpr int kMaxLinks = 2000;
    if (++links_ > kMaxLinks) fail_here("more than 2000 operators in one tag");
  }
  void forget_unknown_since(std::size_t mark) { unknown_names_.resize(std::min(mark, unknown_names_.size())); }

  std::vector<Token> tokens_;
  std::size_t position_ = 0;
  int depth_ = 0;
  int links_ = 0;
  int loop_depth_ = 0;
  std::vector<std::string> names_;
  std::unordered_map<std::string, NameId> name_ids_;
  std::vector<MacroDefinition*> open_macros_;
  /// Filters and tests that do not exist. Below an {% if %} or an inline if jinja2 only fails when it gets there.
  std::vector<UnknownName> unknown_names_;
  std::vector<UnknownName> fatal_unknown_names_;
};

/// Guards the C++ stack: one level of nested blocks, brackets or operators.
class Parser::Nesting {
 public:
  explicit Nesting(Parser& parser) : parser_(parser) {
    constexpr int kMaxDepth = 250;
    if (++parser_.depth_ > kMaxDepth) {
      parser_.fail_here("blocks and expressions nest deeper than 250 levels");
    }
  }
  ~Nesting() { --parser_.depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Parser& parser_;
};

template <class Node>
ExpressionPtr Parser::make(int line, Node node) {
  return std::make_unique<Expression>(Expression{line, std::move(node)});
}

}  // namespace nibble::tokenizer::jinja
