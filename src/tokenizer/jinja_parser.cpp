#include "tokenizer/jinja_parser.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

bool is_reserved(std::string_view name) {
  constexpr std::array<std::string_view, 6> kReserved = {"true", "false", "none", "True", "False", "None"};
  return std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end();
}

}  // namespace

Template parse(std::string_view source) {
  constexpr std::size_t kMaxSourceBytes = std::size_t{4} << 20;
  if (source.size() > kMaxSourceBytes) fail("a chat template of more than 4 MiB is refused");
  if (!text::is_valid_utf8(source)) fail("the template is not valid UTF-8");
  return Parser(tokenize(source)).run();
}

Template Parser::run() && {
  Template result;
  result.body = parse_body({});
  fatal_unknown_names_.insert(fatal_unknown_names_.end(), unknown_names_.begin(), unknown_names_.end());
  if (!fatal_unknown_names_.empty()) fail_at(fatal_unknown_names_.front().line, fatal_unknown_names_.front().message);
  result.names = std::move(names_);
  return result;
}

Token Parser::take() {
  Token token = current();
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool Parser::skip_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  take();
  return true;
}

bool Parser::skip_name(std::string_view text) {
  if (!at_name(text)) return false;
  take();
  return true;
}

void Parser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) fail_here(fmt::format("expected '{}', got '{}'", text, current().text));
}

Token Parser::expect(Token::Kind kind, std::string_view what) {
  if (!at(kind)) {
    fail_here(at(Token::Kind::End) ? fmt::format("unexpected end of template, expected {}", what)
                                   : fmt::format("expected {}, got '{}'", what, current().text));
  }
  return take();
}

NameId Parser::intern(const std::string& name) {
  const auto [entry, is_new] = name_ids_.try_emplace(name, static_cast<NameId>(names_.size()));
  if (is_new) names_.push_back(name);
  return entry->second;
}

void Parser::note_use(const std::string& name) {
  for (MacroDefinition* macro : open_macros_) {
    if (name == "caller") macro->uses_caller = true;
    if (name == "varargs") macro->uses_varargs = true;
    if (name == "kwargs") macro->uses_kwargs = true;
  }
}

/// Up to one of `end_tags`, which becomes the current token; to the end of the template where there are none.
Body Parser::parse_body(const EndTags& end_tags) {
  const Nesting nesting(*this);
  Body body;
  while (!at(Token::Kind::End)) {
    const Token token = take();
    links_ = 0;
    if (token.kind == Token::Kind::Data) {
      body.push_back({token.line, Text{token.text}});
    } else if (token.kind == Token::Kind::VariableBegin) {
      body.push_back({token.line, Print{parse_tuple(Conditions::Allowed)}});
      expect(Token::Kind::VariableEnd, "end of print statement");
    } else {
      const bool is_end =
          at(Token::Kind::Name) && std::find(end_tags.begin(), end_tags.end(), current().text) != end_tags.end();
      if (is_end) return body;
      body.push_back(parse_statement());
      expect(Token::Kind::BlockEnd, "end of statement block");
    }
  }
  if (!end_tags.empty()) {
    fail_here(fmt::format("unexpected end of template; looking for {}", fmt::join(end_tags, " or ")));
  }
  return body;
}

/// A tag's body: from behind `%}` to one of `end_tags`.
Body Parser::parse_block(const EndTags& end_tags) {
  skip_operator(":");
  expect(Token::Kind::BlockEnd, "end of statement block");
  return parse_body(end_tags);
}

/// A body in which unknown filters fail at once again, even where the tag stands below an {% if %}.
Body Parser::parse_own_frame(const EndTags& end_tags) {
  const std::size_t mark = unknown_names_.size();
  Body body = parse_block(end_tags);
  const auto first = unknown_names_.begin() + static_cast<std::ptrdiff_t>(mark);
  fatal_unknown_names_.insert(fatal_unknown_names_.end(), first, unknown_names_.end());
  forget_unknown_since(mark);
  return body;
}

Statement Parser::parse_statement() {
  const int line = current().line;
  if (!at(Token::Kind::Name)) fail_here("tag name expected");
  const std::string tag = take().text;
  return {line, parse_tag(tag)};
}

Statement::Node Parser::parse_tag(const std::string& tag) {
  if (tag == "if") return parse_if();
  if (tag == "for") return parse_for();
  if (tag == "set") return parse_set();
  if (tag == "macro") return parse_macro();
  if (tag == "call") return parse_call_block();
  if (tag == "filter") return parse_filter_block();
  if (tag == "with") return parse_with();
  if (tag == "block") return parse_named_block();
  if (tag == "break" || tag == "continue") return parse_loop_control(tag);
  if (tag == "generation") {
    // transformers marks the assistant's text with it; for the rendered text it is a scope.
    const int outer_loops = std::exchange(loop_depth_, 0);
    ScopedBlock block{parse_own_frame({"endgeneration"})};
    loop_depth_ = outer_loops;
    take();
    return block;
  }
  if (tag == "print") return parse_print();
  constexpr std::array<std::string_view, 5> kOtherTemplates = {"extends", "include", "import", "from", "autoescape"};
  if (std::find(kOtherTemplates.begin(), kOtherTemplates.end(), tag) != kOtherTemplates.end()) {
    fail_here(fmt::format("the tag '{}' is not available in chat templates", tag));
  }
  fail_here(fmt::format("Encountered unknown tag '{}'.", tag));
}

/// {% print a, b %}: both texts, one after the other.
Statement::Node Parser::parse_print() {
  const int line = current().line;
  Concat concat;
  while (!at(Token::Kind::BlockEnd)) {
    if (!concat.parts.empty()) expect_operator(",");
    concat.parts.push_back(parse_expression());
  }
  return Print{make(line, std::move(concat))};
}

Statement::Node Parser::parse_if() {
  If node;
  const std::size_t mark = unknown_names_.size();
  do {
    ExpressionPtr test = parse_tuple(Conditions::Refused);
    Body body = parse_block({"elif", "else", "endif"});
    node.branches.push_back({std::move(test), std::move(body)});
  } while (skip_name("elif"));
  if (take().text == "else") {
    node.otherwise = parse_block({"endif"});
    take();
  }
  forget_unknown_since(mark);
  return node;
}

Statement::Node Parser::parse_for() {
  For node;
  const int line = current().line;
  node.target = parse_target();
  if (node.target.kind == Target::Kind::Variable && names_[static_cast<std::size_t>(node.target.name)] == "loop") {
    fail_at(line, "Can't assign to special loop variable in for-loop");
  }
  if (!skip_name("in")) fail_here("expected 'in' in a for loop");
  node.iterable = parse_tuple(Conditions::Refused);
  if (skip_name("if")) node.filter = parse_expression();
  node.is_recursive = skip_name("recursive");
  ++loop_depth_;
  node.body = parse_own_frame({"endfor", "else"});
  --loop_depth_;
  if (take().text == "else") {
    node.otherwise = parse_own_frame({"endfor"});
    take();
  }
  return node;
}

Statement::Node Parser::parse_loop_control(const std::string& tag) {
  if (loop_depth_ == 0) fail_here(fmt::format("'{}' outside a loop", tag));
  if (tag == "break") return Break{};
  return Continue{};
}

Statement::Node Parser::parse_set() {
  Target target = parse_target();
  if (skip_operator("=")) return Set{std::move(target), parse_tuple(Conditions::Allowed)};
  ExpressionPtr filter = at_operator("|") ? parse_filter_chain(nullptr) : nullptr;
  Body body = parse_own_frame({"endset"});
  take();
  return SetBlock{std::move(target), std::move(filter), std::move(body)};
}

Target Parser::parse_target() {
  Target first = parse_single_target();
  if (!at_operator(",")) return first;
  Target tuple{Target::Kind::Tuple, 0, {}, {}};
  tuple.targets.push_back(std::move(first));
  while (skip_operator(",")) {
    if (at_operator("=") || at_name("in") || at_operator(")") || at(Token::Kind::BlockEnd)) break;
    tuple.targets.push_back(parse_single_target());
  }
  return tuple;
}

Target Parser::parse_single_target() {
  const Nesting nesting(*this);
  if (skip_operator("(")) {
    Target inner = parse_target();
    expect_operator(")");
    return inner;
  }
  const Token name = expect(Token::Kind::Name, "a name to assign to");
  if (is_reserved(name.text)) fail_at(name.line, fmt::format("can't assign to '{}'", name.text));
  if (skip_operator(".")) {
    const Token attribute = expect(Token::Kind::Name, "an attribute name");
    return {Target::Kind::NamespaceAttribute, intern(name.text), attribute.text, {}};
  }
  return {Target::Kind::Variable, intern(name.text), {}, {}};
}

void Parser::parse_signature(MacroDefinition& definition) {
  expect_operator("(");
  while (!at_operator(")")) {
    if (!definition.parameters.empty()) expect_operator(",");
    const Token name = expect(Token::Kind::Name, "a parameter name");
    if (is_reserved(name.text)) fail_at(name.line, fmt::format("can't assign to '{}'", name.text));
    const NameId id = intern(name.text);
    const auto& known = definition.parameters;
    if (std::find(known.begin(), known.end(), id) != known.end()) {
      fail_at(name.line, fmt::format("duplicate argument '{}' in a macro", name.text));
    }
    definition.parameters.push_back(id);
    if (skip_operator("=")) {
      definition.defaults.push_back(parse_expression());
    } else if (!definition.defaults.empty()) {
      fail_here("non-default argument follows default argument");
    }
  }
  expect_operator(")");
}

void Parser::parse_macro_body(MacroDefinition& definition, const EndTags& end_tags) {
  const int outer_loops = std::exchange(loop_depth_, 0);
  open_macros_.push_back(&definition);
  definition.body = parse_own_frame(end_tags);
  open_macros_.pop_back();
  loop_depth_ = outer_loops;
  take();
  check_special_parameters(definition);
}

/// A parameter called caller, varargs or kwargs is an ordinary one.
void Parser::check_special_parameters(MacroDefinition& definition) const {
  const std::size_t num_required = definition.parameters.size() - definition.defaults.size();
  for (std::size_t i = 0; i < definition.parameters.size(); ++i) {
    const std::string& name = names_[static_cast<std::size_t>(definition.parameters[i])];
    if (name == "caller" && definition.uses_caller && i < num_required) {
      fail_here("the special parameter \"caller\" must be left out or be given a default");
    }
    if (name == "caller") definition.uses_caller = false;
    if (name == "varargs") definition.uses_varargs = false;
    if (name == "kwargs") definition.uses_kwargs = false;
  }
}

Statement::Node Parser::parse_macro() {
  auto definition = std::make_shared<MacroDefinition>();
  definition->name = expect(Token::Kind::Name, "a macro name").text;
  if (is_reserved(definition->name)) fail_here(fmt::format("can't assign to '{}'", definition->name));
  definition->name_id = intern(definition->name);
  parse_signature(*definition);
  parse_macro_body(*definition, {"endmacro"});
  return Macro{std::move(definition)};
}

Statement::Node Parser::parse_call_block() {
  auto caller = std::make_shared<MacroDefinition>();
  caller->name = "caller";
  caller->name_id = intern("caller");
  if (at_operator("(")) parse_signature(*caller);
  ExpressionPtr call = parse_expression();
  if (!std::holds_alternative<Call>(call->node)) fail_here("expected call");
  parse_macro_body(*caller, {"endcall"});
  return CallBlock{std::move(caller), std::move(call)};
}

Statement::Node Parser::parse_filter_block() {
  ExpressionPtr filter = parse_filter_chain(parse_filter(nullptr));
  Body body = parse_own_frame({"endfilter"});
  take();
  return FilterBlock{std::move(filter), std::move(body)};
}

Statement::Node Parser::parse_with() {
  With node;
  while (!at(Token::Kind::BlockEnd)) {
    if (!node.assignments.empty()) expect_operator(",");
    Target target = parse_target();
    expect_operator("=");
    node.assignments.emplace_back(std::move(target), parse_expression());
  }
  node.body = parse_own_frame({"endwith"});
  take();
  return node;
}

Statement::Node Parser::parse_named_block() {
  const std::string name = expect(Token::Kind::Name, "a block name").text;
  skip_name("scoped");
  const int outer_loops = std::exchange(loop_depth_, 0);
  ScopedBlock block{parse_own_frame({"endblock"})};
  loop_depth_ = outer_loops;
  take();
  skip_name(name);
  return block;
}

}  // namespace nibble::tokenizer::jinja
