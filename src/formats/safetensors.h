#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/tensor.h"
#include "formats/tensor_file.h"
#include "formats/written_tensor.h"

/// safetensors: u64 little-endian header length, JSON header, raw row-major data (formats.md §0.1). The reader holds
/// a file to the same promises as the reference implementation (safetensors 0.8.0): header of at most 100 MB that
/// begins with '{', valid UTF-8, no duplicate names, no overlap, no hole, data that ends with the file.
namespace nibble::formats {

/// Checks a whole file and lists its tensors. Errors: Corrupt, saying what the file promises and breaks.
TensorHeader parse_safetensors(std::span<const std::byte> file);

/// Errors: as MappedFile::open and parse_safetensors, each with the path; a git-lfs pointer is named as such.
TensorFile open_safetensors(const std::filesystem::path& path);

/// One shard while it is written. The header comes first in the file but is known last, so its room is set aside and
/// what it does not need is filled with spaces, as the format allows.
class SafetensorsShard {
 public:
  explicit SafetensorsShard(const std::filesystem::path& path);
  /// A shard that an earlier run began at `temporary_path` (AtomicFile::reopen), with these tensors in this order;
  /// whatever follows them in the file is cut off. Errors: Corrupt where the file is shorter.
  static SafetensorsShard reopen(const std::filesystem::path& temporary_path, std::span<const WrittenTensor> tensors);

  /// Whether one more tensor of this name fits the header's room and would stand aligned: readers cast in place, and
  /// the format allows no padding between tensors.
  bool has_room_for(std::string_view name, DType dtype) const;
  void add(std::string_view name, TensorView tensor);
  std::int64_t data_bytes() const { return data_bytes_; }
  const std::vector<std::string>& names() const { return names_; }
  /// Whole file, once sealed.
  std::int64_t file_bytes() const { return file_.position(); }
  /// The tensors added so far survive a power cut.
  void sync() { file_.sync(); }
  /// Writes the header, syncs and closes; the shard still has its temporary name.
  void seal();
  void commit_as(const std::filesystem::path& path) { file_.commit_as(path); }

 private:
  explicit SafetensorsShard(AtomicFile file);
  void list(std::string_view name, DType dtype, const Shape& shape, std::int64_t size);

  AtomicFile file_;
  std::string header_;
  std::vector<std::string> names_;
  std::int64_t data_bytes_ = 0;
};

/// Errors: Corrupt when the file is a git-lfs pointer instead of what it stands for.
void refuse_lfs_pointer(std::span<const std::byte> file);

}  // namespace nibble::formats
