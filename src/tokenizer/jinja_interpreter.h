#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenizer/jinja_ast.h"

namespace nibble::tokenizer::jinja {

/// What one render may cost. A step is a node visited, an item walked over, or 32 bytes of text made. Published
/// templates take 50,000 to 160,000 for 400 messages of 1.4 KB; the limit is reached within about 0.2 s.
struct Limits {
  std::uint64_t max_steps = 5'000'000;
  int max_depth = 1'000;  // expressions, blocks, macros and recursive loops inside one another
};

/// The variables of one frame; look-ups go on in the frame around it. Macros and recursive loops keep theirs alive.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<NameId, Value>> variables;

  void set(NameId name, Value value);
  const Value* find(NameId name) const;  // here or further out
};

/// Walks a parsed template once. One thread uses it; the template may be shared.
class Interpreter {
 public:
  Interpreter(const Template& parsed, std::unordered_map<std::string, Value> variables, const Limits& limits);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  /// Errors: InvalidArgument with Python's reason, or naming the limit that was hit.
  std::string run();
  /// The line of the statement or expression that runs.
  int line() const { return line_; }
  /// Whether the error came from the template's own raise_exception.
  bool was_raised_by_template() const { return was_raised_by_template_; }

  // For the library.
  /// Errors: InvalidArgument once the steps are used up.
  void charge(std::uint64_t steps);
  Value call(const Value& callee, Arguments arguments);
  Value call_filter(std::string_view name, const Value& subject, Arguments arguments);
  bool call_test(std::string_view name, const Value& subject, Arguments arguments);
  /// All items of an iterable, each one charged.
  Items collect(const Value& iterable);
  /// Objects that may refer to themselves: they are taken apart when the render ends.
  void keep(std::shared_ptr<Object> object) { kept_.push_back(std::move(object)); }
  [[noreturn]] void raise(std::string message);

  // For macros and loops.
  std::string call_macro(const MacroDefinition& definition, const std::shared_ptr<Scope>& closure, Arguments arguments);
  std::string run_loop(const For& node, const std::shared_ptr<Scope>& scope, const Value& iterable, int depth0);
  bool passes_filter(const For& node, const std::shared_ptr<Scope>& scope, const Value& item);

 private:
  enum class Flow : std::uint8_t { Normal, Break, Continue };
  using ScopePtr = std::shared_ptr<Scope>;
  /// One level deeper on the C++ stack.
  class Depth {
   public:
    explicit Depth(Interpreter& interpreter);
    ~Depth() { --interpreter_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    Interpreter& interpreter_;
  };
  class Capture;
  static constexpr NameId kNoName = -1;

  Flow run_body(const Body& body, const ScopePtr& scope);
  Flow run_scoped(const Body& body, const ScopePtr& scope);
  Flow run(const Text& node, const ScopePtr& scope);
  Flow run(const Print& node, const ScopePtr& scope);
  Flow run(const If& node, const ScopePtr& scope);
  Flow run(const For& node, const ScopePtr& scope);
  Flow run(const Set& node, const ScopePtr& scope);
  Flow run(const SetBlock& node, const ScopePtr& scope);
  Flow run(const Macro& node, const ScopePtr& scope);
  Flow run(const CallBlock& node, const ScopePtr& scope);
  Flow run(const FilterBlock& node, const ScopePtr& scope);
  Flow run(const With& node, const ScopePtr& scope);
  Flow run(const ScopedBlock& node, const ScopePtr& scope);
  Flow run(const Break& node, const ScopePtr& scope);
  Flow run(const Continue& node, const ScopePtr& scope);

  Value evaluate(const Expression& expression, const ScopePtr& scope);
  Value evaluate(const Constant& node, const ScopePtr& scope);
  Value evaluate(const Name& node, const ScopePtr& scope);
  Value evaluate(const ListLiteral& node, const ScopePtr& scope);
  Value evaluate(const TupleLiteral& node, const ScopePtr& scope);
  Value evaluate(const DictLiteral& node, const ScopePtr& scope);
  Value evaluate(const Unary& node, const ScopePtr& scope);
  Value evaluate(const Binary& node, const ScopePtr& scope);
  Value evaluate(const Logical& node, const ScopePtr& scope);
  Value evaluate(const Compare& node, const ScopePtr& scope);
  Value evaluate(const Concat& node, const ScopePtr& scope);
  Value evaluate(const Conditional& node, const ScopePtr& scope);
  Value evaluate(const GetAttribute& node, const ScopePtr& scope);
  Value evaluate(const GetItem& node, const ScopePtr& scope);
  Value evaluate(const GetSlice& node, const ScopePtr& scope);
  Value evaluate(const Call& node, const ScopePtr& scope);
  Value evaluate(const Filter& node, const ScopePtr& scope);
  Value evaluate(const Test& node, const ScopePtr& scope);

  Items evaluate_all(const Expressions& expressions, const ScopePtr& scope);
  Arguments evaluate_arguments(const CallArguments& arguments, const ScopePtr& scope);
  /// A filter chain whose innermost subject is the text of a block.
  Value filter_block(const Expression& filter, std::string text, const ScopePtr& scope);
  void bind_parameters(const MacroDefinition& definition, Arguments arguments, const ScopePtr& scope);
  void assign(const Target& target, const Value& value, const ScopePtr& scope);
  void loop_over(const For& node, const ScopePtr& scope, const Value& iterable, int depth0);
  void write_text(const Value& value);
  NameId find_name(std::string_view name) const;
  Value look_up(NameId name, const ScopePtr& scope);
  const std::string& name_of(NameId name) const { return template_.names[static_cast<std::size_t>(name)]; }
  void write(std::string_view text);

  const Template& template_;
  std::vector<std::optional<Value>> context_;  // by NameId: what the caller gave, then the globals
  std::uint64_t steps_left_;
  int max_depth_;
  int depth_ = 0;
  NameId loop_name_;
  int line_ = 1;
  bool was_raised_by_template_ = false;
  std::string* output_ = nullptr;
  const std::string* block_text_ = nullptr;  // subject of the innermost filter of a block
  std::vector<std::shared_ptr<Object>> kept_;
};

}  // namespace nibble::tokenizer::jinja
