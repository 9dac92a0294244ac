#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "tokenizer/jinja_interpreter.h"

namespace nibble::tokenizer::jinja {

/// `loop` inside {% for %}: pulls the items one at a time, as jinja2's LoopContext, so that the loop's `if` sees what
/// the body did before. Callable where the loop is recursive.
class LoopContext : public Object, public std::enable_shared_from_this<LoopContext> {
 public:
  /// `scope`: the frame around the loop. `depth0`: 0 for the outermost of a recursive loop.
  LoopContext(Interpreter& interpreter, const For& node, std::shared_ptr<Scope> scope, const Value& iterable,
              int depth0);

  /// Moves to the next item; nullopt at the end.
  std::optional<Value> advance();
  /// The loop is over: lets go of frame and items, so that a `loop` kept in a namespace holds nothing.
  void finish();
  Value cycle(const Items& values) const;
  bool has_changed(const Items& values);

  std::string type_name() const override { return "LoopContext"; }
  std::optional<Value> attribute(std::string_view name) override;
  bool is_callable() const override { return true; }
  Value call(Interpreter& interpreter, Arguments arguments) override;
  std::optional<std::int64_t> length() override;
  Extent extent() const override { return extent_; }

 private:
  std::optional<Value> pull();
  bool has_next();

  Interpreter& interpreter_;
  const For& node_;
  std::shared_ptr<Scope> scope_;
  Value iterable_;
  Cursor cursor_;
  Extent extent_;
  int depth0_;
  bool is_finished_ = false;
  std::int64_t index0_ = -1;
  std::optional<std::int64_t> length_;
  std::deque<Value> ahead_;  // pulled, not yet handed out
  std::optional<Value> current_;
  std::optional<Value> previous_;
  std::optional<Items> last_changed_;
};

/// A macro, or the `caller` of a call block: a definition and the frame it was made in.
class MacroObject : public Object {
 public:
  MacroObject(std::shared_ptr<const MacroDefinition> definition, std::shared_ptr<Scope> closure,
              const std::vector<std::string>& names)
      : definition_(std::move(definition)), closure_(std::move(closure)), names_(names) {}

  std::string type_name() const override { return "Macro"; }
  std::string repr() const override { return "<Macro '" + definition_->name + "'>"; }
  std::optional<Value> attribute(std::string_view name) override;
  bool is_callable() const override { return true; }
  Value call(Interpreter& interpreter, Arguments arguments) override;
  void release() override { closure_.reset(); }

 private:
  std::shared_ptr<const MacroDefinition> definition_;
  std::shared_ptr<Scope> closure_;
  const std::vector<std::string>& names_;
};

}  // namespace nibble::tokenizer::jinja
