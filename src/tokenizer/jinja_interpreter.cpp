#include "tokenizer/jinja_interpreter.h"

#include <fmt/format.h>

#include <algorithm>

#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_objects.h"
#include "tokenizer/jinja_print.h"

namespace nibble::tokenizer::jinja {

/// Collects what is written while it lives.
class Interpreter::Capture {
 public:
  explicit Capture(Interpreter& interpreter)
      : interpreter_(interpreter), outer_(std::exchange(interpreter.output_, &text_)) {}
  ~Capture() { interpreter_.output_ = outer_; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  std::string take() { return std::move(text_); }

 private:
  Interpreter& interpreter_;
  std::string text_;
  std::string* outer_;
};

void Scope::set(NameId name, Value value) {
  for (auto& [known, current] : variables) {
    if (known == name) {
      current = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

const Value* Scope::find(NameId name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return &value;
    }
  }
  return nullptr;
}

Interpreter::Interpreter(const Template& parsed, std::unordered_map<std::string, Value> variables, const Limits& limits)
    : template_(parsed), steps_left_(limits.max_steps), max_depth_(limits.max_depth), loop_name_(find_name("loop")) {
  context_.reserve(parsed.names.size());
  for (const std::string& name : parsed.names) {
    const auto given = variables.find(name);
    context_.push_back(given != variables.end() ? std::optional<Value>(given->second) : find_global(name));
  }
}

Interpreter::~Interpreter() {
  for (const auto& object : kept_) object->release();
}

std::string Interpreter::run() {
  Capture capture(*this);
  run_body(template_.body, std::make_shared<Scope>(nullptr));
  return capture.take();
}

void Interpreter::charge(std::uint64_t steps) {
  if (steps > steps_left_) fail("the template takes more steps than the limit allows");
  steps_left_ -= steps;
}

void Interpreter::raise(std::string message) {
  was_raised_by_template_ = true;
  fail(std::move(message));
}

void Interpreter::write(std::string_view text) {
  charge(1 + text.size() / 32);
  check_string_size(output_->size() + text.size());
  output_->append(text);
}

Items Interpreter::collect(const Value& iterable) {
  Items items;
  Cursor cursor(iterable);
  while (auto item = cursor.next()) {
    charge(1);
    items.push_back(*std::move(item));
  }
  return items;
}

Interpreter::Depth::Depth(Interpreter& interpreter) : interpreter_(interpreter) {
  if (interpreter_.depth_ >= interpreter_.max_depth_) {
    fail(fmt::format("macros, loops and expressions recurse deeper than {} levels", interpreter_.max_depth_));
  }
  ++interpreter_.depth_;
}

Interpreter::Flow Interpreter::run_body(const Body& body, const ScopePtr& scope) {
  const Depth depth(*this);
  for (const Statement& statement : body) {
    charge(1);
    line_ = statement.line;
    const Flow flow = std::visit([&](const auto& node) { return run(node, scope); }, statement.node);
    if (flow != Flow::Normal) return flow;
  }
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run_scoped(const Body& body, const ScopePtr& scope) {
  return run_body(body, std::make_shared<Scope>(scope));
}

Interpreter::Flow Interpreter::run(const Text& node, const ScopePtr& /*scope*/) {
  write(node.text);
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const Print& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.value, scope);
  charge(extent(value).weight);
  write(to_string(value));
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const If& node, const ScopePtr& scope) {
  for (const If::Branch& branch : node.branches) {
    if (is_truthy(evaluate(*branch.test, scope))) return run_body(branch.body, scope);
  }
  return run_body(node.otherwise, scope);
}

Interpreter::Flow Interpreter::run(const For& node, const ScopePtr& scope) {
  loop_over(node, scope, evaluate(*node.iterable, scope), 0);
  return Flow::Normal;
}

std::string Interpreter::run_loop(const For& node, const ScopePtr& scope, const Value& iterable, int depth0) {
  Capture capture(*this);
  loop_over(node, scope, iterable, depth0);
  return capture.take();
}

void Interpreter::loop_over(const For& node, const ScopePtr& scope, const Value& iterable, int depth0) {
  const auto loop = std::make_shared<LoopContext>(*this, node, scope, iterable, depth0);
  bool is_empty = true;
  while (const auto item = loop->advance()) {
    is_empty = false;
    charge(4);  // a frame is memory to get and to give back
    const auto inner = std::make_shared<Scope>(scope);
    if (loop_name_ != kNoName) inner->set(loop_name_, Value(std::shared_ptr<Object>(loop)));
    assign(node.target, *item, inner);
    if (run_body(node.body, inner) == Flow::Break) break;
  }
  loop->finish();
  if (is_empty) run_scoped(node.otherwise, scope);
}

bool Interpreter::passes_filter(const For& node, const ScopePtr& scope, const Value& item) {
  const auto inner = std::make_shared<Scope>(scope);
  assign(node.target, item, inner);
  return is_truthy(evaluate(*node.filter, inner));
}

Interpreter::Flow Interpreter::run(const Set& node, const ScopePtr& scope) {
  assign(node.target, evaluate(*node.value, scope), scope);
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const SetBlock& node, const ScopePtr& scope) {
  Capture capture(*this);
  const Flow flow = run_scoped(node.body, scope);
  if (flow != Flow::Normal) return flow;
  std::string text = capture.take();
  assign(node.target,
         node.filter == nullptr ? Value(std::move(text)) : filter_block(*node.filter, std::move(text), scope), scope);
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const Macro& node, const ScopePtr& scope) {
  const auto macro = std::make_shared<MacroObject>(node.definition, scope, template_.names);
  charge(8);
  keep(macro);
  scope->set(node.definition->name_id, Value(std::shared_ptr<Object>(macro)));
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const CallBlock& node, const ScopePtr& scope) {
  const auto caller = std::make_shared<MacroObject>(node.caller, scope, template_.names);
  charge(8);
  keep(caller);
  const auto& invocation = std::get<Call>(node.call->node);
  const Value callee = evaluate(*invocation.callee, scope);
  Arguments arguments = evaluate_arguments(invocation.arguments, scope);
  arguments.keyword.emplace_back("caller", Value(std::shared_ptr<Object>(caller)));
  write_text(call(callee, std::move(arguments)));
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const FilterBlock& node, const ScopePtr& scope) {
  std::string text;
  {
    Capture capture(*this);
    const Flow flow = run_scoped(node.body, scope);
    if (flow != Flow::Normal) return flow;
    text = capture.take();
  }
  write_text(filter_block(*node.filter, std::move(text), scope));
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run(const With& node, const ScopePtr& scope) {
  const auto inner = std::make_shared<Scope>(scope);
  for (const auto& [target, value] : node.assignments) assign(target, evaluate(*value, scope), inner);
  return run_body(node.body, inner);
}

Interpreter::Flow Interpreter::run(const ScopedBlock& node, const ScopePtr& scope) {
  return run_scoped(node.body, scope);
}

Interpreter::Flow Interpreter::run(const Break& /*node*/, const ScopePtr& /*scope*/) {
  return Flow::Break;
}

Interpreter::Flow Interpreter::run(const Continue& /*node*/, const ScopePtr& /*scope*/) {
  return Flow::Continue;
}

/// What a call or filter block prints must be text already.
void Interpreter::write_text(const Value& value) {
  if (!value.is_string()) fail(fmt::format("sequence item 0: expected str instance, {} found", type_name(value)));
  write(*value.string());
}

Value Interpreter::filter_block(const Expression& filter, std::string text, const ScopePtr& scope) {
  const std::string* outer = std::exchange(block_text_, &text);
  Value result = evaluate(filter, scope);
  block_text_ = outer;
  return result;
}

void Interpreter::assign(const Target& target, const Value& value, const ScopePtr& scope) {
  switch (target.kind) {
    case Target::Kind::Variable: scope->set(target.name, value); return;
    case Target::Kind::NamespaceAttribute: {
      const Value holder = look_up(target.name, scope);
      auto* space = dynamic_cast<Namespace*>(holder.object());
      if (space == nullptr) fail("cannot assign attribute on non-namespace object");
      space->set(target.attribute, value);
      return;
    }
    case Target::Kind::Tuple: break;
  }
  const Items items = collect(value);
  if (items.size() > target.targets.size()) {
    fail(fmt::format("too many values to unpack (expected {})", target.targets.size()));
  }
  if (items.size() < target.targets.size()) {
    fail(fmt::format("not enough values to unpack (expected {}, got {})", target.targets.size(), items.size()));
  }
  for (std::size_t i = 0; i < items.size(); ++i) assign(target.targets[i], items[i], scope);
}

std::string Interpreter::call_macro(const MacroDefinition& definition, const ScopePtr& closure, Arguments arguments) {
  const Depth depth(*this);
  charge(8);
  const auto scope = std::make_shared<Scope>(closure);
  bind_parameters(definition, std::move(arguments), scope);
  Capture capture(*this);
  run_body(definition.body, scope);
  return capture.take();
}

void Interpreter::bind_parameters(const MacroDefinition& definition, Arguments arguments, const ScopePtr& scope) {
  const auto take_keyword = [&](const std::string& name) -> std::optional<Value> {
    auto& keyword = arguments.keyword;
    const auto found =
        std::find_if(keyword.begin(), keyword.end(), [&](const auto& entry) { return entry.first == name; });
    if (found == keyword.end()) return std::nullopt;
    Value value = std::move(found->second);
    keyword.erase(found);
    return value;
  };
  const std::size_t num_parameters = definition.parameters.size();
  const std::size_t num_required = num_parameters - definition.defaults.size();
  const std::size_t num_given = std::min(arguments.positional.size(), num_parameters);
  std::vector<std::optional<Value>> values(arguments.positional.begin(),
                                           arguments.positional.begin() + static_cast<std::ptrdiff_t>(num_given));
  for (std::size_t i = num_given; i < num_parameters; ++i)
    values.push_back(take_keyword(name_of(definition.parameters[i])));
  if (definition.uses_caller) {
    const auto caller = take_keyword("caller");
    scope->set(find_name("caller"), caller ? *caller : Value::undefined("No caller defined"));
  }
  if (definition.uses_kwargs) {
    std::vector<Dict::Entry> entries;
    for (auto& [name, value] : arguments.keyword) entries.push_back({Value(name), value});
    scope->set(find_name("kwargs"), Ref<Dict>(std::make_shared<const Dict>(std::move(entries))));
  } else if (!arguments.keyword.empty()) {
    fail(fmt::format("macro '{}' takes no keyword argument '{}'", definition.name, arguments.keyword.front().first));
  }
  if (definition.uses_varargs) {
    scope->set(find_name("varargs"),
               Value::tuple(Items(arguments.positional.begin() + static_cast<std::ptrdiff_t>(num_given),
                                  arguments.positional.end())));
  } else if (arguments.positional.size() > num_parameters) {
    fail(fmt::format("macro '{}' takes not more than {} argument(s)", definition.name, num_parameters));
  }
  for (std::size_t i = 0; i < num_parameters; ++i) {
    const NameId parameter = definition.parameters[i];
    if (values[i]) {
      scope->set(parameter, *std::move(values[i]));
    } else if (i >= num_required) {
      scope->set(parameter, evaluate(*definition.defaults[i - num_required], scope));
    } else {
      scope->set(parameter, Value::undefined(fmt::format("parameter '{}' was not provided", name_of(parameter))));
    }
  }
}

NameId Interpreter::find_name(std::string_view name) const {
  const auto found = std::find(template_.names.begin(), template_.names.end(), name);
  return found == template_.names.end() ? kNoName : static_cast<NameId>(found - template_.names.begin());
}

Value Interpreter::look_up(NameId name, const ScopePtr& scope) {
  if (const Value* found = scope->find(name)) return *found;
  const auto& given = context_[static_cast<std::size_t>(name)];
  return given ? *given : Value::undefined(fmt::format("'{}' is undefined", name_of(name)));
}

}  // namespace nibble::tokenizer::jinja
