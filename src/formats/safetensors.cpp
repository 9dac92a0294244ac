#include "formats/safetensors.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/json.h"

namespace nibble::formats {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kMaxHeaderBytes = 100'000'000;
/// A shard whose header would outgrow this is closed and the next one begun: about 2000 tensors.
constexpr std::size_t kHeaderRoom = std::size_t{256} << 10;
constexpr std::string_view kHeaderStart = R"({"__metadata__":{"format":"pt"})";

/// Every type of safetensors 0.8.0 with its size in bits, so that a file with a tensor nibble has no use for is read.
constexpr std::array<std::pair<std::string_view, std::int64_t>, 21> kTypeBits{
    {{"F32", 32},    {"F16", 16},    {"BF16", 16},   {"F8_E4M3", 8},     {"I64", 64},        {"I32", 32},
     {"I16", 16},    {"I8", 8},      {"U8", 8},      {"F64", 64},        {"U64", 64},        {"U32", 32},
     {"U16", 16},    {"BOOL", 8},    {"F8_E5M2", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8},
     {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}}};

Error corrupt(std::string message) {
  return {ErrorCode::Corrupt, std::move(message)};
}

std::int64_t bits_of_type(std::string_view dtype_name) {
  for (const auto& [spelling, bits] : kTypeBits) {
    if (spelling == dtype_name) return bits;
  }
  throw corrupt(fmt::format("unknown dtype '{}'", dtype_name));
}

std::string_view header_text(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    throw corrupt(fmt::format("{} bytes are too few for a safetensors file", file.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    throw corrupt(fmt::format("header length {} is above the format's limit of 100 MB", length));
  }
  if (length > file.size() - kLengthBytes) {
    throw corrupt(fmt::format("header length {} goes past the end of the file ({} bytes)", length, file.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (text.empty() || text.front() != '{') throw corrupt("the header does not begin with '{'");
  return text;
}

template <class T>
T value_of(simdjson::simdjson_result<T> result, const char* what) {
  T value{};
  if (const auto error = std::move(result).get(value); error != simdjson::SUCCESS) {
    throw corrupt(fmt::format("{}: {}", what, simdjson::error_message(error)));
  }
  return value;
}

std::int64_t size_of(simdjson::dom::element element, const char* what) {
  const std::uint64_t value = value_of(element.get_uint64(), what);
  if (value > static_cast<std::uint64_t>(INT64_MAX)) throw corrupt(fmt::format("{}: {} is too large", what, value));
  return static_cast<std::int64_t>(value);
}

std::vector<std::int64_t> sizes_of(simdjson::dom::element element, const char* what) {
  std::vector<std::int64_t> sizes;
  for (const simdjson::dom::element size : value_of(element.get_array(), what)) sizes.push_back(size_of(size, what));
  return sizes;
}

std::size_t bytes_of(const TensorEntry& entry) {
  std::int64_t bits = bits_of_type(entry.dtype_name);
  for (const std::int64_t size : entry.sizes) bits = checked_multiply(bits, size);
  if (bits % 8 != 0) throw corrupt("the elements do not fill whole bytes");
  return static_cast<std::size_t>(bits / 8);
}

/// {"dtype": …, "shape": …, "data_offsets": [begin, end]}, offsets relative to `data_begin`.
TensorEntry parse_entry(simdjson::dom::element element, std::size_t data_begin, std::size_t file_bytes) {
  TensorEntry entry;
  std::vector<std::int64_t> offsets;
  int dtypes = 0;
  int shapes = 0;
  int pairs = 0;
  for (const auto& [key, value] : value_of(element.get_object(), "tensor")) {
    if (key == "dtype") {
      entry.dtype_name = value_of(value.get_string(), "dtype");
      ++dtypes;
    } else if (key == "shape") {
      entry.sizes = sizes_of(value, "shape");
      ++shapes;
    } else if (key == "data_offsets") {
      offsets = sizes_of(value, "data_offsets");
      ++pairs;
    }
  }
  if (dtypes != 1 || shapes != 1 || pairs != 1 || offsets.size() != 2) {
    throw corrupt("needs dtype, shape and data_offsets [begin, end], each once");
  }
  const std::size_t data_bytes = file_bytes - data_begin;
  if (offsets[0] > offsets[1] || static_cast<std::uint64_t>(offsets[1]) > data_bytes) {
    throw corrupt(
        fmt::format("data_offsets [{}, {}] are outside the file's {} data bytes", offsets[0], offsets[1], data_bytes));
  }
  entry.dtype = dtype_from_name(entry.dtype_name);
  entry.begin = data_begin + static_cast<std::size_t>(offsets[0]);
  entry.end = data_begin + static_cast<std::size_t>(offsets[1]);
  if (const std::size_t expected = bytes_of(entry); expected != entry.end - entry.begin) {
    throw corrupt(fmt::format("{} of shape [{}] takes {} bytes, but data_offsets span {}", entry.dtype_name,
                              fmt::join(entry.sizes, ", "), expected, entry.end - entry.begin));
  }
  return entry;
}

void check_metadata(simdjson::dom::element element) {
  for (const auto& [key, value] : value_of(element.get_object(), "__metadata__")) {
    if (!value.is_string()) throw corrupt(fmt::format("__metadata__: '{}' is not a string", key));
  }
}

/// Every byte of the data belongs to exactly one tensor.
void check_layout(const TensorHeader& header, std::size_t data_begin, std::size_t file_bytes) {
  std::vector<const TensorHeader::value_type*> by_offset;
  by_offset.reserve(header.size());
  for (const auto& named : header) by_offset.push_back(&named);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::size_t expected = data_begin;
  for (const auto* named : by_offset) {
    if (named->second.begin != expected) {
      throw corrupt(fmt::format("{}: data begins at byte {} of the file, where {} was expected: tensors {}",
                                named->first, named->second.begin, expected,
                                named->second.begin < expected ? "overlap" : "leave a hole"));
    }
    expected = named->second.end;
  }
  if (expected != file_bytes) {
    throw corrupt(fmt::format("the tensors end at byte {}, the file at {}", expected, file_bytes));
  }
}

}  // namespace

TensorHeader parse_safetensors(std::span<const std::byte> file) {
  const std::string_view text = header_text(file);
  const std::size_t data_begin = kLengthBytes + text.size();
  const simdjson::padded_string padded(text);
  simdjson::dom::parser parser;
  const simdjson::dom::object root =
      value_of(value_of(parser.parse(padded), "header is not valid JSON").get_object(), "header");
  TensorHeader header;
  bool has_metadata = false;
  for (const auto& [key, value] : root) {
    if (key == "__metadata__") {
      if (std::exchange(has_metadata, true)) throw corrupt("__metadata__ stands twice in the header");
      check_metadata(value);
      continue;
    }
    try {
      if (!header.emplace(std::string(key), parse_entry(value, data_begin, file.size())).second) {
        throw corrupt("stands twice in the header");
      }
    } catch (const Error& error) {
      throw error.in(key);
    }
  }
  check_layout(header, data_begin, file.size());
  return header;
}

void refuse_lfs_pointer(std::span<const std::byte> file) {
  constexpr std::string_view kPointerStart = "version https://git-lfs.github.com/spec/";
  if (file.size() < kPointerStart.size() || std::memcmp(file.data(), kPointerStart.data(), kPointerStart.size()) != 0) {
    return;
  }
  throw corrupt("is a git-lfs pointer, not the file it stands for; run `git lfs pull` in its folder");
}

TensorFile open_safetensors(const std::filesystem::path& path) {
  MappedFile file = MappedFile::open(path);
  try {
    refuse_lfs_pointer(file.bytes());
    TensorHeader header = parse_safetensors(file.bytes());
    return {std::move(file), std::move(header)};
  } catch (const Error& error) {
    throw error.in(path.string());
  }
}

SafetensorsShard::SafetensorsShard(const std::filesystem::path& path) : SafetensorsShard(AtomicFile(path)) {
  file_.write(std::string(kLengthBytes + kHeaderRoom, ' '));
}

SafetensorsShard::SafetensorsShard(AtomicFile file) : file_(std::move(file)), header_(kHeaderStart) {}

SafetensorsShard SafetensorsShard::reopen(const std::filesystem::path& temporary_path,
                                          std::span<const WrittenTensor> tensors) {
  constexpr auto kDataBegin = static_cast<std::int64_t>(kLengthBytes + kHeaderRoom);
  const std::string room(kLengthBytes + kHeaderRoom, ' ');
  std::int64_t data_bytes = 0;
  for (const WrittenTensor& tensor : tensors) data_bytes += tensor.size_bytes();
  SafetensorsShard shard(AtomicFile::reopen(temporary_path, tensors.empty() ? 0 : kDataBegin + data_bytes));
  if (tensors.empty()) {
    shard.file_.write(room);
  } else {
    shard.file_.write_at(0, std::as_bytes(std::span(room)));  // a header of more tensors may stand there
  }
  for (const WrittenTensor& tensor : tensors) shard.list(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes());
  return shard;
}

bool SafetensorsShard::has_room_for(std::string_view name, DType dtype) const {
  constexpr std::size_t kMaxEntryBytes = 256;  // dtype, four sizes and two offsets of 20 digits, and punctuation
  const bool aligned = static_cast<std::size_t>(data_bytes_) % nibble::size_bytes(dtype) == 0;
  return aligned && header_.size() + 6 * name.size() + kMaxEntryBytes <= kHeaderRoom;  // \u00xx: a byte can take six
}

void SafetensorsShard::add(std::string_view name, TensorView tensor) {
  const auto write = [&](TensorView part) {
    file_.write({static_cast<const std::byte*>(part.data()), part.size_bytes()});
  };
  if (tensor.is_contiguous()) {
    write(tensor);
  } else {
    for (std::int64_t r = 0; r < tensor.shape()[0]; ++r) write(tensor.rows(r, 1));
  }
  list(name, tensor.dtype(), tensor.shape(), static_cast<std::int64_t>(tensor.size_bytes()));
}

void SafetensorsShard::list(std::string_view name, DType dtype, const Shape& shape, std::int64_t size) {
  header_ += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", Json(name).dump(),
                         nibble::name(dtype), fmt::join(shape.sizes(), ","), data_bytes_, data_bytes_ + size);
  data_bytes_ += size;
  names_.emplace_back(name);
}

void SafetensorsShard::seal() {
  header_ += '}';
  check(header_.size() <= kHeaderRoom, "safetensors header outgrew its room");
  std::string start(kLengthBytes, '\0');
  const std::uint64_t length = kHeaderRoom;
  std::memcpy(start.data(), &length, kLengthBytes);
  start += header_;
  file_.write_at(0, std::as_bytes(std::span(start)));
  file_.seal();
}

}  // namespace nibble::formats
