#include "formats/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace nibble::formats {
namespace {

// A state dict takes some twenty instructions and ten objects a tensor.
constexpr std::size_t kMaxPickleBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxObjects = 4'000'000;
constexpr std::size_t kMaxStack = 1'000'000;

constexpr std::array<std::string_view, 10> kStorages{"FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage",
                                                     "LongStorage",  "IntStorage",  "ShortStorage",    "CharStorage",
                                                     "ByteStorage",  "BoolStorage"};

enum class Kind : std::uint8_t { None, Integer, Float, Text, Tuple, List, Dict, Global, Storage, Tensor };

std::string_view name_of(Kind kind) {
  constexpr std::array<std::string_view, 10> kNames{"None",   "a number", "a float",  "text",      "a tuple",
                                                    "a list", "a dict",   "a global", "a storage", "a tensor"};
  return kNames[static_cast<std::size_t>(kind)];
}

/// An index into the machine's objects: what a Python reference is.
using Reference = std::uint32_t;

struct Object {
  Kind kind = Kind::None;
  std::int64_t integer = 0;  // Integer, and a bool
  std::string_view text;     // Text; Global: "torch._utils _rebuild_tensor_v2"; lies in the pickle
  /// Tuple and List: the items. Dict: keys and values in turns. Storage: type, key, size. Tensor: storage, offset,
  /// sizes, strides.
  std::vector<Reference> items;
};

/// The restricted machine: a stack, marks on it, and a memo. Objects refer to one another by index and are never
/// followed but from the root down, so that one that holds itself does no harm.
class PickleMachine {
 public:
  explicit PickleMachine(std::span<const std::byte> pickle)
      : text_(reinterpret_cast<const char*>(pickle.data()), pickle.size()) {
    if (text_.size() > kMaxPickleBytes) {
      throw Error(ErrorCode::Unsupported, fmt::format("a pickle of {} MB is more than any state dict needs, {} MB",
                                                      text_.size() >> 20, kMaxPickleBytes >> 20));
    }
  }

  /// Runs to STOP; what lies on the stack then.
  Reference run() {
    while (true) {
      const char code = take(1).front();
      if (code == '.') break;
      step(code);
    }
    return pop();
  }

  const Object& at(Reference reference) const { return objects_[reference]; }
  const Object& at(Reference reference, Kind kind, const char* what) const {
    const Object& object = objects_[reference];
    if (object.kind != kind) throw corrupt(fmt::format("{} is {}, not {}", what, name_of(object.kind), name_of(kind)));
    return object;
  }

 private:
  Error corrupt(const std::string& message) const {
    return {ErrorCode::Corrupt, fmt::format("pickle, byte {}: {}", position_, message)};
  }

  std::string_view take(std::size_t count) {
    if (count > text_.size() - position_) throw corrupt("ends early");
    position_ += count;
    return text_.substr(position_ - count, count);
  }
  template <class T>
  T take_number() {
    T number;
    std::memcpy(&number, take(sizeof(T)).data(), sizeof(T));
    return number;
  }
  std::string_view take_line() {
    const std::size_t end = text_.find('\n', position_);
    if (end == std::string_view::npos) throw corrupt("a line without an end");
    const std::string_view line = take(end - position_);
    take(1);
    return line;
  }

  Reference make(Object object) {
    if (objects_.size() == kMaxObjects) throw corrupt(fmt::format("more than {} objects", kMaxObjects));
    objects_.push_back(std::move(object));
    return static_cast<Reference>(objects_.size() - 1);
  }
  void push(Reference reference) {
    if (stack_.size() == kMaxStack) throw corrupt(fmt::format("more than {} objects on the stack", kMaxStack));
    stack_.push_back(reference);
  }
  void push(Object object) { push(make(std::move(object))); }
  /// Nothing below the last mark may be taken one by one.
  Reference pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) throw corrupt("takes from an empty stack");
    const Reference top = stack_.back();
    stack_.pop_back();
    return top;
  }
  Object& top(Kind kind, const char* what) {
    const Reference reference = pop();
    stack_.push_back(reference);
    at(reference, kind, what);
    return objects_[reference];
  }
  std::vector<Reference> pop_to_mark() {
    if (marks_.empty()) throw corrupt("takes to a mark that is not there");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Reference> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }

  void step(char code) {
    switch (code) {
      case '\x80': return static_cast<void>(take(1));  // PROTO: what it brings is seen at its instructions
      case '(': return marks_.push_back(stack_.size());
      case 'N': return push({Kind::None});
      case '\x88': return push({Kind::Integer, 1});
      case '\x89': return push({Kind::Integer, 0});
      case 'K': return push({Kind::Integer, take_number<std::uint8_t>()});
      case 'M': return push({Kind::Integer, take_number<std::uint16_t>()});
      case 'J': return push({Kind::Integer, take_number<std::int32_t>()});
      case '\x8a': return push({Kind::Integer, take_long()});
      case 'G': return static_cast<void>(take(8)), push({Kind::Float});
      case 'X': return push({Kind::Text, 0, take(take_number<std::uint32_t>())});
      case 'U': return push({Kind::Text, 0, take(take_number<std::uint8_t>())});
      case ')': return push({Kind::Tuple});
      case '\x85': return push_tuple(1);
      case '\x86': return push_tuple(2);
      case '\x87': return push_tuple(3);
      case 't': return push({Kind::Tuple, 0, {}, pop_to_mark()});
      case ']': return push({Kind::List});
      case 'a': return append({pop()}, Kind::List);
      case 'e': return append(pop_to_mark(), Kind::List);
      case '}': return push({Kind::Dict});
      case 's': return set_item();
      case 'u': return append(pop_to_mark(), Kind::Dict);
      case 'c': return push_global();
      case 'Q': return push_storage();
      case 'R': return reduce();
      case 'b': return build();
      case 'q': return put(take_number<std::uint8_t>());
      case 'r': return put(take_number<std::uint32_t>());
      case 'h': return get(take_number<std::uint8_t>());
      case 'j': return get(take_number<std::uint32_t>());
      default:
        throw Error(ErrorCode::Unsupported,
                    fmt::format("pickle, byte {}: instruction 0x{:02x} is none that torch.save writes for a state dict",
                                position_ - 1, static_cast<unsigned char>(code)));
    }
  }

  std::int64_t take_long() {
    const std::size_t size = take_number<std::uint8_t>();
    if (size > sizeof(std::int64_t)) throw corrupt("an integer of more than 64 bits");
    const std::string_view bytes = take(size);
    std::uint64_t value = !bytes.empty() && (bytes.back() & 0x80) != 0 ? ~std::uint64_t{0} : 0;
    std::memcpy(&value, bytes.data(), size);
    return static_cast<std::int64_t>(value);
  }

  void push_tuple(std::size_t count) {
    std::vector<Reference> items(count);
    for (std::size_t i = count; i-- > 0;) items[i] = pop();
    push({Kind::Tuple, 0, {}, std::move(items)});
  }

  void append(const std::vector<Reference>& items, Kind kind) {
    if (kind == Kind::Dict && items.size() % 2 != 0) throw corrupt("a key without a value");
    std::vector<Reference>& target = top(kind, "what items are added to").items;
    target.insert(target.end(), items.begin(), items.end());
  }
  void set_item() {
    const Reference value = pop();
    append({pop(), value}, Kind::Dict);
  }

  void put(std::uint32_t index) {
    if (stack_.empty()) throw corrupt("remembers from an empty stack");
    if (index > memo_.size()) throw corrupt(fmt::format("memo entry {} before entry {}", index, memo_.size()));
    if (index == memo_.size()) memo_.emplace_back();
    memo_[index] = stack_.back();
  }
  void get(std::uint32_t index) {
    if (index >= memo_.size()) throw corrupt(fmt::format("memo entry {} of {}", index, memo_.size()));
    push(memo_[index]);
  }

  /// "module\nname\n"
  void push_global() {
    const std::size_t begin = position_;
    const std::string_view module = take_line();
    const std::string_view name = take_line();
    const bool is_storage = module == "torch" && std::ranges::find(kStorages, name) != kStorages.end();
    const bool is_function =
        (module == "collections" && name == "OrderedDict") ||
        (module == "torch._utils" && (name == "_rebuild_tensor_v2" || name == "_rebuild_parameter"));
    if (!is_storage && !is_function) {
      throw Error(ErrorCode::Unsupported,
                  fmt::format("the pickle names {}.{}, which nibble does not run: it reads dicts of tensors only; load "
                              "the file in python, if you trust it, and save its state dict as safetensors",
                              module, name));
    }
    push({Kind::Global, 0, is_storage ? name : text_.substr(begin, position_ - begin - 1)});
  }

  /// The persistent id ('storage', type, key, location, size).
  void push_storage() {
    const Object id = at(pop(), Kind::Tuple, "a persistent id");
    if (id.items.size() != 5 || at(id.items[0], Kind::Text, "a persistent id's tag").text != "storage") {
      throw corrupt("a persistent id that is no storage");
    }
    at(id.items[1], Kind::Global, "a storage's type");
    at(id.items[2], Kind::Text, "a storage's key");
    at(id.items[4], Kind::Integer, "a storage's size");
    push({Kind::Storage, 0, {}, {id.items[1], id.items[2], id.items[4]}});
  }

  void reduce() {
    const Object arguments = at(pop(), Kind::Tuple, "a call's arguments");
    const std::string_view function = at(pop(), Kind::Global, "what is called").text;
    if (function == "collections\nOrderedDict") {
      if (!arguments.items.empty()) throw corrupt("an OrderedDict with arguments");
      push({Kind::Dict});
    } else if (function == "torch._utils\n_rebuild_tensor_v2") {
      if (arguments.items.size() < 4) throw corrupt("a tensor of fewer than 4 arguments");
      at(arguments.items[0], Kind::Storage, "a tensor's storage");
      at(arguments.items[1], Kind::Integer, "a tensor's offset");
      at(arguments.items[2], Kind::Tuple, "a tensor's size");
      at(arguments.items[3], Kind::Tuple, "a tensor's stride");
      push({Kind::Tensor, 0, {}, {arguments.items.begin(), arguments.items.begin() + 4}});
    } else if (function == "torch._utils\n_rebuild_parameter") {
      if (arguments.items.empty()) throw corrupt("a parameter without a tensor");
      at(arguments.items[0], Kind::Tensor, "a parameter's tensor");
      push(arguments.items[0]);
    } else {
      throw corrupt("a call of what cannot be called");
    }
  }

  /// Attributes of an OrderedDict, such as torch's _metadata: dropped.
  void build() {
    pop();
    top(Kind::Dict, "what attributes are set on");
  }

  std::string_view text_;
  std::size_t position_ = 0;
  std::vector<Object> objects_;
  std::vector<Reference> stack_;
  std::vector<std::size_t> marks_;  // stack sizes
  std::vector<Reference> memo_;
};

std::vector<std::int64_t> integers_of(const PickleMachine& machine, Reference tuple, const char* what) {
  std::vector<std::int64_t> integers;
  for (const Reference item : machine.at(tuple).items)
    integers.push_back(machine.at(item, Kind::Integer, what).integer);
  return integers;
}

PickledTensor tensor_of(const PickleMachine& machine, const Object& object) {
  const Object& storage = machine.at(object.items[0]);
  PickledTensor tensor;
  tensor.storage_type = machine.at(storage.items[0]).text;
  tensor.storage_key = machine.at(storage.items[1]).text;
  tensor.storage_size = machine.at(storage.items[2]).integer;
  tensor.offset = machine.at(object.items[1]).integer;
  tensor.sizes = integers_of(machine, object.items[2], "a size");
  tensor.strides = integers_of(machine, object.items[3], "a stride");
  return tensor;
}

}  // namespace

std::map<std::string, PickledTensor, std::less<>> read_state_dict(std::span<const std::byte> pickle) {
  PickleMachine machine(pickle);
  const Object& root = machine.at(machine.run(), Kind::Dict, "the file's object");
  std::map<std::string, PickledTensor, std::less<>> tensors;
  for (std::size_t i = 0; i < root.items.size(); i += 2) {
    const Object& value = machine.at(root.items[i + 1]);
    if (value.kind != Kind::Tensor) continue;
    const std::string_view name = machine.at(root.items[i], Kind::Text, "a tensor's name").text;
    if (!tensors.emplace(name, tensor_of(machine, value)).second) {
      throw Error(ErrorCode::Corrupt, fmt::format("pickle: {} stands there twice", name));
    }
  }
  if (tensors.empty()) {
    throw Error(ErrorCode::Unsupported,
                "the pickle is no state dict: it holds no tensors by name; save model.state_dict() instead");
  }
  return tensors;
}

}  // namespace nibble::formats
