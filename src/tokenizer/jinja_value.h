#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "core/json.h"

/// The values of a chat template: Python's, as far as a template of the immutable sandbox can see them. Lists, tuples,
/// dicts and strings never change once made, so values share them (every shared_ptr here is one more Python reference).
namespace nibble::tokenizer::jinja {

class Interpreter;
class Value;
using Items = std::vector<Value>;
template <class T>
using Ref = std::shared_ptr<const T>;

/// Throws InvalidArgument; whoever runs the template adds its name and line.
[[noreturn]] void fail(std::string message);

/// How deep a value nests and how many nodes a walk over it visits (shared parts counted each time, 32 bytes of text
/// count as one). Known at construction, so that hostile values are refused before anything recurses into them.
struct Extent {
  std::uint32_t depth = 1;
  std::uint64_t weight = 1;
};
constexpr std::uint32_t kMaxValueDepth = 400;
constexpr std::uint64_t kMaxValueWeight = 20'000'000;
/// Bytes of one string, of one macro's text and of the whole output.
constexpr std::uint64_t kMaxStringBytes = std::uint64_t{64} << 20;

struct None {
  bool operator==(const None&) const = default;
};
/// jinja2's default Undefined: prints as nothing, iterates as empty, and fails with `message` on everything else.
struct Undefined {
  std::string message;
};
struct String {
  std::string text;        // UTF-8
  bool is_markup = false;  // markupsafe.Markup: `+` escapes what it joins
};
struct List {
  Items items;
  Extent extent;
};
struct Tuple {
  Items items;
  Extent extent;
};
struct Range {
  std::int64_t start = 0;
  std::int64_t step = 1;
  std::int64_t size = 0;
};
class Dict;
struct DictView;

/// A Python generator: each item is made when it is asked for, once. One thread uses it.
class Generator {
 public:
  using Next = std::function<std::optional<Value>()>;
  Generator(Next next, Extent extent) : next_(std::move(next)), extent_(extent) {}
  std::optional<Value> next();
  Extent extent() const { return extent_; }

 private:
  Next next_;
  Extent extent_;
  bool is_done_ = false;
};

/// Positional and keyword arguments of a call.
struct Arguments;

/// Everything else with identity: functions, bound methods, macros, namespaces, loops.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string type_name() const = 0;
  virtual std::string repr() const { return "<" + type_name() + " object>"; }
  virtual std::optional<Value> attribute(std::string_view name);
  virtual bool is_callable() const { return false; }
  virtual Value call(Interpreter& interpreter, Arguments arguments);
  virtual std::optional<std::int64_t> length() { return std::nullopt; }
  virtual Extent extent() const { return {}; }
  /// Drops what may refer back to the object, so that no cycle outlives the render.
  virtual void release() {}
};

class Value {
 public:
  using Variant =
      std::variant<None, bool, std::int64_t, double, Ref<Undefined>, Ref<String>, Ref<List>, Ref<Tuple>, Ref<Dict>,
                   Ref<DictView>, Ref<Range>, std::shared_ptr<Generator>, std::shared_ptr<Object>>;

  Value() = default;
  Value(None) {}
  template <std::same_as<bool> T>  // a pointer is no truth value here
  Value(T value) : variant_(value) {}
  Value(std::int64_t value) : variant_(value) {}
  Value(int value) : variant_(std::int64_t{value}) {}
  Value(double value) : variant_(value) {}
  Value(std::string text) : variant_(std::make_shared<const String>(String{std::move(text)})) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(std::shared_ptr<Object> object) : variant_(std::move(object)) {}
  Value(std::shared_ptr<Generator> generator) : variant_(std::move(generator)) {}
  template <class T>
  Value(Ref<T> value) : variant_(std::move(value)) {}

  static Value undefined(std::string message);
  static Value markup(std::string text);
  static Value list(Items items);
  static Value tuple(Items items);
  /// Errors: InvalidArgument for a number beyond 64 bits.
  static Value from_json(const Json& json);

  const Variant& variant() const { return variant_; }
  bool is_none() const { return std::holds_alternative<None>(variant_); }
  bool is_bool() const { return std::holds_alternative<bool>(variant_); }
  bool is_float() const { return std::holds_alternative<double>(variant_); }
  bool is_undefined() const { return std::holds_alternative<Ref<Undefined>>(variant_); }
  bool is_string() const { return std::holds_alternative<Ref<String>>(variant_); }
  bool is_markup() const { return is_string() && std::get<Ref<String>>(variant_)->is_markup; }
  /// The text of a string; nullptr for every other kind.
  const std::string* string() const;
  /// int or bool, as Python's isinstance(x, int).
  std::optional<std::int64_t> integer() const;
  /// int, bool or float.
  std::optional<double> number() const;
  template <class T>
  const T* get() const {
    const auto* ref = std::get_if<Ref<T>>(&variant_);
    return ref == nullptr ? nullptr : ref->get();
  }
  Object* object() const;
  /// Items of a list or a tuple; nullptr otherwise.
  const Items* sequence() const;

 private:
  Variant variant_;
};

/// Insertion-ordered, keys by Python's equality (1, 1.0 and True are one key), constant-time look-up.
class Dict {
 public:
  struct Entry {
    Value key;
    Value value;
  };
  explicit Dict(std::vector<Entry> entries);  // of equal keys the last value wins, at the first one's place
  const std::vector<Entry>& entries() const { return entries_; }
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const { return find(Value(key)); }
  Extent extent() const { return extent_; }

 private:
  std::optional<std::size_t> position(const Value& key) const;

  std::vector<Entry> entries_;
  std::unordered_multimap<std::size_t, std::size_t> positions_;  // hash → entry; only for dicts beyond a few keys
  Extent extent_;
};

struct DictView {
  enum class Part : std::uint8_t { Keys, Values, Pairs };
  Ref<Dict> dict;
  Part part;
};

struct Arguments {
  Items positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

/// Walks over any iterable as Python's iter() does. Errors: InvalidArgument "'int' object is not iterable".
class Cursor {
 public:
  explicit Cursor(Value iterable);
  std::optional<Value> next();

 private:
  Value iterable_;
  std::size_t position_ = 0;  // item; for a string its byte
};

Extent extent(const Value& value);
/// What an operation that looks only at the top level costs.
std::uint64_t shallow_weight(const Value& value);
/// Errors: InvalidArgument where the text is longer than kMaxStringBytes.
void check_string_size(std::uint64_t size_bytes);

/// Python's name of the type: "str", "NoneType", "dict".
std::string type_name(const Value& value);
bool is_truthy(const Value& value);
bool is_callable(const Value& value);
bool is_iterable(const Value& value);
/// len(); nullopt where Python has none.
std::optional<std::int64_t> length(const Value& value);
bool equals(const Value& left, const Value& right);
/// Python's `is`.
bool is_same(const Value& left, const Value& right);
/// Errors: InvalidArgument "unhashable type: 'list'".
std::size_t hash(const Value& value);
/// `left < right`. Errors: InvalidArgument "'<' not supported between instances of …" with `symbol` as the operator.
bool less_than(const Value& left, const Value& right, std::string_view symbol = "<");
/// `needle in haystack`.
bool contains(const Value& haystack, const Value& needle);

}  // namespace nibble::tokenizer::jinja
