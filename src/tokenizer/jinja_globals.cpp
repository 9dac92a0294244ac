#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <ctime>

#include "tokenizer/jinja_interpreter.h"
#include "tokenizer/jinja_library.h"
#include "tokenizer/jinja_print.h"
#include "tokenizer/jinja_text.h"

namespace nibble::tokenizer::jinja {
namespace {

/// dict(mapping or pairs, **keyword).
std::vector<Dict::Entry> dict_entries(Interpreter& interpreter, const Arguments& arguments) {
  if (arguments.positional.size() > 1) fail("dict expected at most 1 argument");
  std::vector<Dict::Entry> entries;
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (const auto* dict = source.get<Dict>()) {
      entries = dict->entries();
    } else {
      for (const Value& pair : interpreter.collect(source)) {
        Items items = interpreter.collect(pair);
        if (items.size() != 2) fail("dictionary update sequence element has not length 2");
        interpreter.charge(extent(items[0]).weight);
        entries.push_back({std::move(items[0]), std::move(items[1])});
      }
    }
  }
  for (const auto& [name, value] : arguments.keyword) entries.push_back({Value(name), value});
  interpreter.charge(entries.size());
  return entries;
}

Value dict_from(std::vector<Dict::Entry> entries) {
  return Ref<Dict>(std::make_shared<const Dict>(std::move(entries)));
}

Value from_keys(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("fromkeys", arguments, {"/iterable", "/value"}, 1);
  std::vector<Dict::Entry> entries;
  for (Value& key : interpreter.collect(bound.value(0))) {
    interpreter.charge(extent(key).weight);
    entries.push_back({std::move(key), bound.value(1)});
  }
  return dict_from(std::move(entries));
}

/// transformers' TemplateDict.
class DictFunction : public Object {
 public:
  std::string type_name() const override { return "TemplateDict"; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& interpreter, Arguments arguments) override {
    return dict_from(dict_entries(interpreter, arguments));
  }
  std::optional<Value> attribute(std::string_view name) override {
    if (name != "fromkeys") return std::nullopt;
    return Value(std::shared_ptr<Object>(std::make_shared<NativeFunction>("fromkeys", from_keys)));
  }
};

Value make_namespace(Interpreter& interpreter, Arguments& arguments) {
  const auto space = std::make_shared<Namespace>();
  interpreter.charge(8);
  interpreter.keep(space);
  for (auto& [key, value] : dict_entries(interpreter, arguments)) {
    if (!key.is_string()) fail("the names of a namespace must be strings");
    space->set(*key.string(), value);
  }
  return std::shared_ptr<Object>(space);
}

Value range(Interpreter& /*interpreter*/, Arguments& arguments) {
  const Bound bound("range", arguments, {"/start", "/stop", "/step"}, 1);
  const std::int64_t start = bound.has(1) ? bound.integer(0, 0) : 0;
  const std::int64_t stop = bound.has(1) ? bound.integer(1, 0) : bound.integer(0, 0);
  const std::int64_t step = bound.integer(2, 1);
  if (step == 0) fail("range() arg 3 must not be zero");
  constexpr std::int64_t kMaxRange = 100'000;  // jinja2's MAX_RANGE in the sandbox
  const auto distance = static_cast<__int128>(stop) - start;
  const __int128 size = step > 0 ? (distance + step - 1) / step : (distance + step + 1) / step;
  if (size > kMaxRange) {
    fail(fmt::format("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange));
  }
  return Ref<Range>(
      std::make_shared<const Range>(Range{start, step, static_cast<std::int64_t>(std::max<__int128>(0, size))}));
}

Value raise_exception(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("raise_exception", arguments, {"message"}, 1);
  interpreter.raise(to_string(bound.value(0)));
}

Value strftime_now(Interpreter& /*interpreter*/, Arguments& arguments) {
  const Bound bound("strftime_now", arguments, {"format"}, 1);
  const std::string format = bound.text(0);
  constexpr std::size_t kMaxFormat = 1000;
  if (format.size() > kMaxFormat) fail("strftime_now: a format of more than 1000 bytes is refused");
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto fraction =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() % 1'000'000;
  std::tm local{};
  localtime_r(&seconds, &local);
  // %f is Python's own; naive times print %z and %Z as nothing.
  std::string expanded;
  for (std::size_t i = 0; i < format.size(); ++i) {
    const char kind = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : ' ';
    if (kind == 'f') {
      expanded += fmt::format("{:06}", fraction);
      ++i;
    } else if (kind == 'z' || kind == 'Z') {
      ++i;
    } else if (kind == '%') {
      expanded += "%%";
      ++i;
    } else {
      expanded += format[i];
    }
  }
  std::array<char, 65536> buffer{};
  const std::size_t size = std::strftime(buffer.data(), buffer.size(), expanded.c_str(), &local);
  if (size == 0 && !expanded.empty()) return "";
  std::string text(buffer.data(), size);
  if (!text::is_valid_utf8(text)) fail("strftime_now: the locale's text is not UTF-8");
  return text;
}

/// cycler("a", "b"): hands out its items in turn.
class Cycler : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(Items items) : items_(std::move(items)) {}
  std::string type_name() const override { return "Cycler"; }
  std::optional<Value> attribute(std::string_view name) override {
    if (name == "pos") return static_cast<std::int64_t>(position_);
    if (name == "items") return Value::tuple(items_);
    if (name == "current") return items_[position_];
    if (name == "next" || name == "reset") {
      return Value(std::shared_ptr<Object>(std::make_shared<Method>(shared_from_this(), name == "next")));
    }
    return std::nullopt;
  }
  Extent extent() const override {
    Extent whole = jinja::extent(Value::tuple(items_));
    ++whole.depth;
    return whole;
  }

 private:
  class Method : public Object {
   public:
    Method(std::shared_ptr<Cycler> cycler, bool is_next) : cycler_(std::move(cycler)), is_next_(is_next) {}
    std::string type_name() const override { return "method"; }
    bool is_callable() const override { return true; }
    Value call(Interpreter& /*interpreter*/, Arguments /*arguments*/) override {
      const std::size_t position =
          std::exchange(cycler_->position_, is_next_ ? (cycler_->position_ + 1) % cycler_->items_.size() : 0);
      return is_next_ ? cycler_->items_[position] : Value();
    }

   private:
    std::shared_ptr<Cycler> cycler_;
    bool is_next_;
  };

  Items items_;
  std::size_t position_ = 0;
};

Value make_cycler(Interpreter& /*interpreter*/, Arguments& arguments) {
  if (arguments.positional.empty()) fail("at least one item has to be provided");
  return std::shared_ptr<Object>(std::make_shared<Cycler>(arguments.positional));
}

/// joiner(", "): "" the first time it is called, the separator from then on.
class Joiner : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string type_name() const override { return "Joiner"; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& /*interpreter*/, Arguments /*arguments*/) override {
    return std::exchange(was_used_, true) ? separator_ : Value("");
  }

 private:
  Value separator_;
  bool was_used_ = false;
};

Value make_joiner(Interpreter& /*interpreter*/, Arguments& arguments) {
  const Bound bound("joiner", arguments, {"sep"});
  return std::shared_ptr<Object>(std::make_shared<Joiner>(bound.has(0) ? Value(bound.text(0)) : Value(", ")));
}

struct Global {
  std::string_view name;
  NativeFunction::Function function;
};
constexpr auto kGlobals = std::to_array<Global>({
    {"cycler", make_cycler},
    {"joiner", make_joiner},
    {"namespace", make_namespace},
    {"raise_exception", raise_exception},
    {"range", range},
    {"strftime_now", strftime_now},
});

}  // namespace

std::string Namespace::repr() const {
  fail("a namespace cannot be printed");
}

std::optional<Value> Namespace::attribute(std::string_view name) {
  for (const auto& [known, value] : attributes_) {
    if (known == name) return value;
  }
  return std::nullopt;
}

void Namespace::set(std::string_view name, Value value) {
  if (name.starts_with('_')) {
    fail(
        fmt::format("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'. "
                    "Please rename the attribute.",
                    name));
  }
  for (auto& [known, current] : attributes_) {
    if (known == name) {
      current = std::move(value);
      return;
    }
  }
  if (attributes_.size() >= 1000) fail("a namespace of more than 1000 attributes is refused");
  attributes_.emplace_back(name, std::move(value));
}

std::optional<Value> find_global(std::string_view name) {
  if (name == "dict") return Value(std::shared_ptr<Object>(std::make_shared<DictFunction>()));
  const auto* found =
      std::find_if(kGlobals.begin(), kGlobals.end(), [&](const Global& row) { return row.name == name; });
  if (found == kGlobals.end()) return std::nullopt;
  return Value(std::shared_ptr<Object>(std::make_shared<NativeFunction>(std::string(name), found->function)));
}

}  // namespace nibble::tokenizer::jinja
