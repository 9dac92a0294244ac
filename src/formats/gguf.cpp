#include "formats/gguf.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/error.h"

namespace nibble::formats {
namespace {

constexpr std::uint32_t kLatestVersion = 3;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 20;
constexpr std::size_t kMaxDimensions = 4;
constexpr std::size_t kMaxKeyBytes = 65535;

enum class ValueType : std::uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };

Error corrupt(std::string message) {
  return {ErrorCode::Corrupt, std::move(message)};
}

/// Reads forward through the file; never past its end.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::size_t position() const { return position_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(std::uint64_t count) {
    if (count > remaining()) {
      throw corrupt(fmt::format("the file ends at byte {}, where {} more bytes were expected", bytes_.size(), count));
    }
    return bytes_.subspan(std::exchange(position_, position_ + count), count);
  }
  template <class T>
  T read() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view string() {
    const auto text = take(read<std::uint64_t>());
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

std::size_t smallest_size(ValueType type) {
  switch (type) {
    case ValueType::U8:
    case ValueType::I8:
    case ValueType::Bool: return 1;
    case ValueType::U16:
    case ValueType::I16: return 2;
    case ValueType::U32:
    case ValueType::I32:
    case ValueType::F32: return 4;
    case ValueType::U64:
    case ValueType::I64:
    case ValueType::F64:
    case ValueType::String: return 8;  // a string's length
    case ValueType::Array: break;
  }
  throw corrupt(fmt::format("metadata of unknown type {}", static_cast<std::uint32_t>(type)));
}

template <class T>
GgufValue read_integer(Cursor& cursor) {
  const T value = cursor.read<T>();
  if constexpr (std::is_same_v<T, std::uint64_t>) {
    if (value > static_cast<std::uint64_t>(INT64_MAX)) throw corrupt(fmt::format("{} is too large", value));
  }
  return static_cast<std::int64_t>(value);
}

GgufValue read_scalar(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::U8: return read_integer<std::uint8_t>(cursor);
    case ValueType::I8: return read_integer<std::int8_t>(cursor);
    case ValueType::U16: return read_integer<std::uint16_t>(cursor);
    case ValueType::I16: return read_integer<std::int16_t>(cursor);
    case ValueType::U32: return read_integer<std::uint32_t>(cursor);
    case ValueType::I32: return read_integer<std::int32_t>(cursor);
    case ValueType::U64: return read_integer<std::uint64_t>(cursor);
    case ValueType::I64: return read_integer<std::int64_t>(cursor);
    case ValueType::F32: return cursor.read<float>();
    case ValueType::F64: return cursor.read<double>();
    case ValueType::Bool: return cursor.read<std::uint8_t>() != 0;
    case ValueType::String: return cursor.string();
    case ValueType::Array: break;
  }
  throw corrupt(fmt::format("metadata of unknown type {}", static_cast<std::uint32_t>(type)));
}

double as_number(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> double {
        if constexpr (std::is_arithmetic_v<std::decay_t<decltype(v)>>) return static_cast<double>(v);
        return 0;  // not reached: read_array keeps strings apart
      },
      value);
}

GgufValue read_array(Cursor& cursor) {
  const auto type = static_cast<ValueType>(cursor.read<std::uint32_t>());
  const auto count = cursor.read<std::uint64_t>();
  if (type == ValueType::Array) throw corrupt("arrays of arrays are not part of GGUF as it is written");
  if (count > cursor.remaining() / smallest_size(type)) {
    throw corrupt(fmt::format("an array of {} elements goes past the end of the file", count));
  }
  GgufArray array;
  if (type == ValueType::String) {
    array.strings.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) array.strings.push_back(cursor.string());
  } else {
    array.numbers.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) array.numbers.push_back(as_number(read_scalar(cursor, type)));
  }
  return array;
}

GgufValue read_value(Cursor& cursor) {
  const auto type = static_cast<ValueType>(cursor.read<std::uint32_t>());
  return type == ValueType::Array ? read_array(cursor) : read_scalar(cursor, type);
}

void check_version(std::uint32_t version) {
  if (version == 2 || version == kLatestVersion) return;
  if (version != 0 && (version & 0xffffu) == 0) {
    throw Error(ErrorCode::Unsupported, "a big-endian GGUF file; nibble reads little-endian ones");
  }
  throw Error(ErrorCode::Unsupported,
              fmt::format("GGUF version {}; nibble reads 2 and {}{}", version, kLatestVersion,
                          version == 1 ? ": convert the file again with a current llama.cpp" : ""));
}

struct Counts {
  std::uint64_t tensors;
  std::uint64_t metadata;
};

Counts read_preamble(Cursor& cursor) {
  const auto magic = cursor.take(4);
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) throw corrupt("not a GGUF file: it does not begin with 'GGUF'");
  check_version(cursor.read<std::uint32_t>());
  const auto num_tensors = cursor.read<std::uint64_t>();
  const auto num_metadata = cursor.read<std::uint64_t>();
  // The smallest entries: key length, type and one byte; name length, dimension count, one size, type and offset.
  if (num_metadata > cursor.remaining() / 13 || num_tensors > cursor.remaining() / 32) {
    throw corrupt(fmt::format("{} metadata entries and {} tensors do not fit the file's {} bytes", num_metadata,
                              num_tensors, cursor.position() + cursor.remaining()));
  }
  return {num_tensors, num_metadata};
}

/// A tensor as listed, before its bytes are looked up.
struct TensorEntry {
  std::string_view name;
  GgufTensor tensor;
  std::uint64_t offset;
  std::uint64_t size_bytes;
};

Shape read_shape(Cursor& cursor) {
  const auto rank = cursor.read<std::uint32_t>();
  if (rank == 0 || rank > kMaxDimensions) throw corrupt(fmt::format("{} dimensions; 1 to 4 are possible", rank));
  std::vector<std::int64_t> sizes(rank);
  std::int64_t elements = 1;
  for (std::int64_t& size : sizes) {
    const auto value = cursor.read<std::uint64_t>();
    if (value == 0 || value > static_cast<std::uint64_t>(INT64_MAX)) throw corrupt(fmt::format("a size of {}", value));
    size = static_cast<std::int64_t>(value);
    elements = checked_multiply(elements, size);
  }
  std::reverse(sizes.begin(), sizes.end());  // GGUF lists the innermost first
  return Shape(sizes);
}

TensorEntry read_tensor_entry(Cursor& cursor) {
  TensorEntry entry{cursor.string(), {}, 0, 0};
  if (entry.name.empty() || entry.name.size() > kMaxKeyBytes) throw corrupt("a tensor name of impossible length");
  try {
    entry.tensor.shape = read_shape(cursor);
    const auto type = cursor.read<std::uint32_t>();
    entry.offset = cursor.read<std::uint64_t>();
    const GgufTypeLayout* layout = find_gguf_type(type);
    if (layout == nullptr) {
      throw Error(
          ErrorCode::Unsupported,
          fmt::format("GGUF type {} is not read; use a file with F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
                      "Q5_K or Q6_K",
                      type));
    }
    entry.tensor.type = layout->type;
    const std::int64_t row = entry.tensor.shape[entry.tensor.shape.rank() - 1];
    if (row % layout->block_elements != 0) {
      throw corrupt(fmt::format("rows of {} do not fill {}'s blocks of {}", row, layout->name, layout->block_elements));
    }
    entry.size_bytes = static_cast<std::uint64_t>(
        checked_multiply(entry.tensor.shape.num_elements() / layout->block_elements, layout->block_bytes));
  } catch (const Error& error) {
    throw error.in(entry.name);
  }
  return entry;
}

std::uint64_t alignment_of(const GgufFile& file) {
  const auto value = file.integer("general.alignment").value_or(kDefaultAlignment);
  const auto alignment = static_cast<std::uint64_t>(value);
  if (value < 8 || alignment > kMaxAlignment || !std::has_single_bit(alignment)) {
    throw corrupt(fmt::format("general.alignment {}: expected a power of two of at least 8", value));
  }
  return alignment;
}

/// Gives every entry its bytes; no two tensors share one.
void place(std::vector<TensorEntry>& entries, std::span<const std::byte> data, std::uint64_t alignment) {
  std::vector<TensorEntry*> by_offset;
  for (TensorEntry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
  std::uint64_t end = 0;
  for (TensorEntry* entry : by_offset) {
    if (entry->offset % alignment != 0)
      throw corrupt(fmt::format("{}: offset {} is not aligned", entry->name, entry->offset));
    if (entry->offset < end) throw corrupt(fmt::format("{}: overlaps the tensor before it", entry->name));
    if (entry->offset > data.size() || entry->size_bytes > data.size() - entry->offset) {
      throw corrupt(fmt::format("{}: {} bytes at offset {} go past the end of the file; is it cut off?", entry->name,
                                entry->size_bytes, entry->offset));
    }
    end = entry->offset + entry->size_bytes;
    entry->tensor.bytes = data.subspan(entry->offset, entry->size_bytes);
  }
}

template <class T>
std::optional<T> find_value(const std::map<std::string_view, GgufValue>& metadata, std::string_view key,
                            const char* type_name) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return std::nullopt;
  if (const T* value = std::get_if<T>(&found->second)) return *value;
  throw corrupt(fmt::format("{}: expected {}", key, type_name));
}

}  // namespace

GgufFile GgufFile::parse(std::span<const std::byte> file) {
  Cursor cursor(file);
  const Counts counts = read_preamble(cursor);
  GgufFile parsed;
  for (std::uint64_t i = 0; i < counts.metadata; ++i) {
    const std::string_view key = cursor.string();
    if (key.empty() || key.size() > kMaxKeyBytes) throw corrupt("a metadata key of impossible length");
    try {
      if (!parsed.metadata_.emplace(key, read_value(cursor)).second) throw corrupt("stands twice in the metadata");
    } catch (const Error& error) {
      throw error.in(key.substr(0, 200));
    }
  }
  std::vector<TensorEntry> entries;
  entries.reserve(counts.tensors);
  for (std::uint64_t i = 0; i < counts.tensors; ++i) entries.push_back(read_tensor_entry(cursor));

  const std::uint64_t alignment = alignment_of(parsed);
  const std::size_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  place(entries, data_begin < file.size() ? file.subspan(data_begin) : std::span<const std::byte>{}, alignment);
  for (TensorEntry& entry : entries) {
    if (!parsed.tensors_.emplace(entry.name, entry.tensor).second) {
      throw corrupt(fmt::format("{}: stands twice in the file", entry.name));
    }
  }
  return parsed;
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
  const auto value = find_value<std::string_view>(metadata_, key, "a string");
  if (value && !simdjson::validate_utf8(*value)) throw corrupt(fmt::format("{}: not valid UTF-8", key));
  return value;
}

std::optional<std::int64_t> GgufFile::integer(std::string_view key) const {
  return find_value<std::int64_t>(metadata_, key, "an integer");
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  return find_value<bool>(metadata_, key, "a boolean");
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  double number = NAN;
  if (const auto* single = std::get_if<float>(&found->second)) {
    number = std::strtod(fmt::format("{}", *single).c_str(), nullptr);
  } else if (const auto* wide = std::get_if<double>(&found->second)) {
    number = *wide;
  } else if (const auto* integer = std::get_if<std::int64_t>(&found->second)) {
    number = static_cast<double>(*integer);
  }
  if (!std::isfinite(number)) throw corrupt(fmt::format("{}: expected a finite number", key));
  return number;
}

const GgufArray* GgufFile::array(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return nullptr;
  if (const auto* value = std::get_if<GgufArray>(&found->second)) return value;
  throw corrupt(fmt::format("{}: expected an array", key));
}

}  // namespace nibble::formats
