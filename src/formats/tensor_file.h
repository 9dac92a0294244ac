#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"

namespace nibble::formats {

/// Where one tensor stands in a file. `dtype` is empty for a type that the format has and nibble has not.
struct TensorEntry {
  std::string dtype_name;  // "F16"
  std::optional<DType> dtype;
  std::vector<std::int64_t> sizes;
  std::size_t begin = 0;  // offsets in the file
  std::size_t end = 0;
  std::string fault;  // why the tensor cannot be read although its file can; empty for a sound one
};

using TensorHeader = std::map<std::string, TensorEntry, std::less<>>;

/// A mapped file of tensors that lie in it as they are used: safetensors, or what torch.save writes. Views live as long
/// as it does. const calls are thread-safe.
class TensorFile {
 public:
  TensorFile(MappedFile file, TensorHeader header) : file_(std::move(file)), header_(std::move(header)) {}

  const std::filesystem::path& path() const { return file_.path(); }
  const TensorHeader& header() const { return header_; }
  bool contains(std::string_view name) const { return header_.find(name) != header_.end(); }
  /// The bytes of a tensor. The tensor must exist.
  std::span<const std::byte> bytes(const TensorEntry& entry) const {
    return file_.bytes().subspan(entry.begin, entry.end - entry.begin);
  }
  void release(const TensorEntry& entry) const { file_.release(bytes(entry)); }

 private:
  MappedFile file_;
  TensorHeader header_;
};

}  // namespace nibble::formats
