#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tokenizer/jinja_value.h"

/// What the parser makes and the interpreter walks. Names are numbers: indices into Template::names.
namespace nibble::tokenizer::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Expressions = std::vector<ExpressionPtr>;
using Body = std::vector<Statement>;
using NameId = std::int32_t;

struct CallArguments {
  Expressions positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keyword;
  ExpressionPtr star;         // *args or null
  ExpressionPtr double_star;  // **kwargs or null
};

enum class UnaryOperator : std::uint8_t { Not, Minus, Plus };
enum class BinaryOperator : std::uint8_t { Add, Subtract, Multiply, Divide, FloorDivide, Modulo, Power };
enum class Comparison : std::uint8_t { Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual, In, NotIn };

struct Constant {
  Value value;
};
struct Name {
  NameId id;
};
struct ListLiteral {
  Expressions items;
};
struct TupleLiteral {
  Expressions items;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
struct Unary {
  UnaryOperator op;
  ExpressionPtr operand;
};
struct Binary {
  BinaryOperator op;
  ExpressionPtr left;
  ExpressionPtr right;
};
struct Logical {
  bool is_or;
  ExpressionPtr left;
  ExpressionPtr right;
};
struct Compare {
  ExpressionPtr first;
  std::vector<std::pair<Comparison, ExpressionPtr>> rest;  // a < b < c
};
struct Concat {
  Expressions parts;
};
struct Conditional {
  ExpressionPtr test;
  ExpressionPtr then;
  ExpressionPtr otherwise;  // null: undefined
};
struct GetAttribute {
  ExpressionPtr object;
  std::string name;
};
struct GetItem {
  ExpressionPtr object;
  ExpressionPtr key;
};
struct GetSlice {
  ExpressionPtr object;
  ExpressionPtr start;  // null where left out, as stop and step
  ExpressionPtr stop;
  ExpressionPtr step;
};
struct Call {
  ExpressionPtr callee;
  CallArguments arguments;
};
struct Filter {
  ExpressionPtr subject;  // null in {% filter %} and block set: the text of the block
  std::string name;
  CallArguments arguments;
};
struct Test {
  ExpressionPtr subject;
  std::string name;
  CallArguments arguments;
};

struct Expression {
  using Node = std::variant<Constant, Name, ListLiteral, TupleLiteral, DictLiteral, Unary, Binary, Logical, Compare,
                            Concat, Conditional, GetAttribute, GetItem, GetSlice, Call, Filter, Test>;
  int line;
  Node node;
};

/// What {% set %} and {% for %} assign to.
struct Target {
  enum class Kind : std::uint8_t { Variable, NamespaceAttribute, Tuple };
  Kind kind;
  NameId name = 0;              // the variable, or the namespace
  std::string attribute;        // of a namespace
  std::vector<Target> targets;  // of a tuple
};

struct Text {
  std::string text;
};
struct Print {
  ExpressionPtr value;
};
struct If {
  struct Branch {
    ExpressionPtr test;
    Body body;
  };
  std::vector<Branch> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr filter;  // null without `if`
  bool is_recursive;
  Body body;
  Body otherwise;
};
struct Set {
  Target target;
  ExpressionPtr value;
};
struct SetBlock {
  Target target;
  ExpressionPtr filter;  // null, or a chain of Filter whose innermost subject is null
  Body body;
};
/// A macro's or a call block's parameters and body.
struct MacroDefinition {
  std::string name;
  NameId name_id = 0;
  std::vector<NameId> parameters;
  Expressions defaults;  // of the last parameters
  Body body;
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
};
struct Macro {
  std::shared_ptr<const MacroDefinition> definition;
};
struct CallBlock {
  std::shared_ptr<const MacroDefinition> caller;
  ExpressionPtr call;
};
struct FilterBlock {
  ExpressionPtr filter;
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Body body;
};
/// {% block %} without inheritance and {% generation %}: a scope of its own, rendered in place.
struct ScopedBlock {
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  using Node = std::variant<Text, Print, If, For, Set, SetBlock, Macro, CallBlock, FilterBlock, With, ScopedBlock,
                            Break, Continue>;
  int line;
  Node node;
};

struct Template {
  Body body;
  std::vector<std::string> names;
};

}  // namespace nibble::tokenizer::jinja
