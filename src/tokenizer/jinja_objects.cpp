#include "tokenizer/jinja_objects.h"

#include <fmt/format.h>

namespace nibble::tokenizer::jinja {
namespace {

/// loop.cycle and loop.changed, bound to their loop.
class LoopMethod : public Object {
 public:
  enum class Kind : std::uint8_t { Cycle, Changed };
  LoopMethod(std::shared_ptr<LoopContext> loop, Kind kind) : loop_(std::move(loop)), kind_(kind) {}
  std::string type_name() const override { return "method"; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& /*interpreter*/, Arguments arguments) override {
    if (kind_ == Kind::Cycle) return loop_->cycle(arguments.positional);
    return loop_->has_changed(arguments.positional);
  }

 private:
  std::shared_ptr<LoopContext> loop_;
  Kind kind_;
};

}  // namespace

LoopContext::LoopContext(Interpreter& interpreter, const For& node, std::shared_ptr<Scope> scope, const Value& iterable,
                         int depth0)
    : interpreter_(interpreter),
      node_(node),
      scope_(std::move(scope)),
      iterable_(iterable),
      cursor_(iterable),
      extent_(jinja::extent(iterable)),
      depth0_(depth0) {
  ++extent_.depth;
}

void LoopContext::finish() {
  is_finished_ = true;
  scope_.reset();
  cursor_ = Cursor(Value::tuple({}));
  iterable_ = Value();
  ahead_.clear();
  current_.reset();
  previous_.reset();
  last_changed_.reset();
}

std::optional<Value> LoopContext::pull() {
  while (auto item = cursor_.next()) {
    interpreter_.charge(1);
    if (node_.filter == nullptr || interpreter_.passes_filter(node_, scope_, *item)) return item;
  }
  return std::nullopt;
}

std::optional<Value> LoopContext::advance() {
  std::optional<Value> item;
  if (ahead_.empty()) {
    item = pull();
  } else {
    item = std::move(ahead_.front());
    ahead_.pop_front();
  }
  if (!item) return std::nullopt;
  ++index0_;
  previous_ = std::exchange(current_, item);
  return item;
}

bool LoopContext::has_next() {
  if (!ahead_.empty()) return true;
  auto item = pull();
  if (!item) return false;
  ahead_.push_back(*std::move(item));
  return true;
}

std::optional<std::int64_t> LoopContext::length() {
  if (length_ || is_finished_) return length_.value_or(0);
  if (node_.filter == nullptr) length_ = jinja::length(iterable_);
  if (length_) return length_;
  while (auto item = pull()) ahead_.push_back(*std::move(item));
  length_ = static_cast<std::int64_t>(ahead_.size()) + index0_ + 1;
  return length_;
}

std::optional<Value> LoopContext::attribute(std::string_view name) {
  if (name == "index") return index0_ + 1;
  if (name == "index0") return index0_;
  if (name == "first") return index0_ == 0;
  if (name == "last") return !has_next();
  if (name == "length") return *length();
  if (name == "revindex") return *length() - index0_;
  if (name == "revindex0") return *length() - index0_ - 1;
  if (name == "depth") return depth0_ + 1;
  if (name == "depth0") return depth0_;
  if (is_finished_) return std::nullopt;
  if (name == "previtem") return index0_ == 0 ? Value::undefined("there is no previous item") : *previous_;
  if (name == "nextitem") return has_next() ? ahead_.front() : Value::undefined("there is no next item");
  if (name == "cycle" || name == "changed") {
    const auto kind = name == "cycle" ? LoopMethod::Kind::Cycle : LoopMethod::Kind::Changed;
    return Value(std::shared_ptr<Object>(std::make_shared<LoopMethod>(shared_from_this(), kind)));
  }
  return std::nullopt;
}

Value LoopContext::cycle(const Items& values) const {
  if (values.empty()) fail("no items for cycling given");
  return values[static_cast<std::size_t>(index0_) % values.size()];
}

bool LoopContext::has_changed(const Items& values) {
  const bool is_same_as_last = last_changed_ && equals(Value::tuple(*last_changed_), Value::tuple(values));
  last_changed_ = values;
  return !is_same_as_last;
}

Value LoopContext::call(Interpreter& interpreter, Arguments arguments) {
  if (is_finished_) fail("the loop is over and cannot be called any more");
  if (!node_.is_recursive) fail("The loop must have the 'recursive' marker to be called recursively.");
  if (arguments.positional.size() != 1 || !arguments.keyword.empty()) fail("loop() takes exactly one iterable");
  return interpreter.run_loop(node_, scope_, arguments.positional[0], depth0_ + 1);
}

std::optional<Value> MacroObject::attribute(std::string_view name) {
  if (name == "name") return Value(definition_->name);
  if (name == "catch_kwargs") return definition_->uses_kwargs;
  if (name == "catch_varargs") return definition_->uses_varargs;
  if (name == "caller") return definition_->uses_caller;
  if (name != "arguments") return std::nullopt;
  Items parameters;
  for (const NameId parameter : definition_->parameters)
    parameters.emplace_back(names_[static_cast<std::size_t>(parameter)]);
  return Value::tuple(std::move(parameters));
}

Value MacroObject::call(Interpreter& interpreter, Arguments arguments) {
  return interpreter.call_macro(*definition_, closure_, std::move(arguments));
}

}  // namespace nibble::tokenizer::jinja
