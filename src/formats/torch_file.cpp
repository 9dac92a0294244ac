#include "formats/torch_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/tensor.h"
#include "formats/pickle.h"
#include "formats/safetensors.h"
#include "formats/zip_archive.h"

namespace nibble::formats {
namespace {

struct StorageType {
  std::string_view name;
  std::string_view dtype_name;  // safetensors' spelling
  std::int64_t element_bytes;
};
constexpr std::array<StorageType, 10> kStorageTypes{{{"FloatStorage", "F32", 4},
                                                     {"HalfStorage", "F16", 2},
                                                     {"BFloat16Storage", "BF16", 2},
                                                     {"DoubleStorage", "F64", 8},
                                                     {"LongStorage", "I64", 8},
                                                     {"IntStorage", "I32", 4},
                                                     {"ShortStorage", "I16", 2},
                                                     {"CharStorage", "I8", 1},
                                                     {"ByteStorage", "U8", 1},
                                                     {"BoolStorage", "BOOL", 1}}};

using Archive = std::map<std::string, ZipEntry, std::less<>>;

bool begins_with(std::span<const std::byte> file, std::string_view magic) {
  return file.size() >= magic.size() && std::equal(magic.begin(), magic.end(), file.begin(),
                                                   [](char a, std::byte b) { return static_cast<std::byte>(a) == b; });
}

void refuse_other_containers(std::span<const std::byte> file) {
  if (begins_with(file, "PK")) return;
  if (begins_with(file, "\x80\x02")) {
    throw Error(ErrorCode::Unsupported,
                "is a pickle as torch wrote it before 1.6; load and save it once with a newer torch");
  }
  throw Error(ErrorCode::Corrupt, "is no zip archive, as torch.save writes");
}

/// "archive", the folder that holds data.pkl.
std::string root_of(const Archive& archive) {
  constexpr std::string_view kPickle = "/data.pkl";
  const auto is_pickle = [&](const auto& named) {
    return named.first.ends_with(kPickle) && named.first.find('/') == named.first.size() - kPickle.size();
  };
  const auto found = std::ranges::find_if(archive, is_pickle);
  if (found == archive.end()) throw Error(ErrorCode::Corrupt, "a zip archive without data.pkl is none of torch.save's");
  return found->first.substr(0, found->first.size() - kPickle.size());
}

std::span<const std::byte> stored_bytes(const Archive& archive, const std::string& name) {
  const auto found = archive.find(name);
  if (found == archive.end()) throw Error(ErrorCode::Corrupt, fmt::format("the archive lacks {}", name));
  if (!found->second.is_stored) {
    throw Error(ErrorCode::Unsupported, fmt::format("{} is compressed, which torch.save never does", name));
  }
  return found->second.bytes;
}

void expect_little_endian(const Archive& archive, const std::string& root) {
  const std::string name = root + "/byteorder";
  if (!archive.contains(name) || begins_with(stored_bytes(archive, name), "little")) return;
  throw Error(ErrorCode::Unsupported, "was written on a big-endian machine; load and save it on a usual one");
}

/// Rows follow one another without gaps. Dimensions of one element may have any stride.
bool is_contiguous(const PickledTensor& tensor) {
  std::int64_t expected = 1;
  for (std::size_t d = tensor.sizes.size(); d-- > 0;) {
    if (tensor.sizes[d] == 0) return true;
    if (tensor.sizes[d] > 1 && tensor.strides[d] != expected) return false;
    expected = checked_multiply(expected, tensor.sizes[d]);
  }
  return true;
}

/// `file` and `storage` overlap: the entry's offsets are the file's.
TensorEntry entry_of(const PickledTensor& tensor, std::span<const std::byte> file, std::span<const std::byte> storage) {
  const auto type = std::ranges::find(kStorageTypes, tensor.storage_type, &StorageType::name);
  if (type == kStorageTypes.end()) throw Error(ErrorCode::Unsupported, tensor.storage_type + " is not read");
  TensorEntry entry;
  entry.dtype_name = type->dtype_name;
  entry.dtype = dtype_from_name(type->dtype_name);
  entry.sizes = tensor.sizes;
  if (tensor.sizes.size() != tensor.strides.size()) throw Error(ErrorCode::Corrupt, "has a stride too many or too few");
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.sizes) {
    if (size < 0) throw Error(ErrorCode::Corrupt, fmt::format("has the size {}", size));
    count = checked_multiply(count, size);
  }
  if (!is_contiguous(tensor)) {
    entry.fault = fmt::format("is stored with strides [{}], not row by row; save its .contiguous() form",
                              fmt::join(tensor.strides, ", "));
    count = 0;  // its elements lie elsewhere
  }
  const auto available = static_cast<std::int64_t>(storage.size()) / type->element_bytes;
  if (tensor.offset < 0 || tensor.offset > available || count > available - tensor.offset) {
    throw Error(ErrorCode::Corrupt,
                fmt::format("takes {} elements from element {} of a storage of {}", count, tensor.offset, available));
  }
  entry.begin = static_cast<std::size_t>(storage.data() - file.data()) +
                static_cast<std::size_t>(tensor.offset * type->element_bytes);
  entry.end = entry.begin + static_cast<std::size_t>(count * type->element_bytes);
  return entry;
}

}  // namespace

TensorHeader parse_torch_file(std::span<const std::byte> file) {
  refuse_other_containers(file);
  const Archive archive = list_zip(file);
  const std::string root = root_of(archive);
  expect_little_endian(archive, root);
  TensorHeader header;
  for (const auto& [name, tensor] : read_state_dict(stored_bytes(archive, root + "/data.pkl"))) {
    try {
      const auto storage = stored_bytes(archive, fmt::format("{}/data/{}", root, tensor.storage_key));
      header.emplace(name, entry_of(tensor, file, storage));
    } catch (const Error& error) {
      throw error.in(name);
    }
  }
  return header;
}

TensorFile open_torch_file(const std::filesystem::path& path) {
  MappedFile file = MappedFile::open(path);
  try {
    refuse_lfs_pointer(file.bytes());
    TensorHeader header = parse_torch_file(file.bytes());
    return {std::move(file), std::move(header)};
  } catch (const Error& error) {
    throw error.in(path.string());
  }
}

}  // namespace nibble::formats
