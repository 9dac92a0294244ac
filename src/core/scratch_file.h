#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace nibble {

/// A file for what does not fit into memory. It has no name and is gone with this object or its process. One thread
/// calls it. Move only.
class ScratchFile {
 public:
  /// Errors: Unavailable and NotFound naming the folder.
  explicit ScratchFile(std::filesystem::path folder);
  ScratchFile(ScratchFile&& other) noexcept;
  ScratchFile& operator=(ScratchFile&& other) noexcept;
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile();

  /// Errors: Unavailable naming the folder (a full disk).
  void write(std::int64_t offset, std::span<const std::byte> bytes);
  /// Bytes that were written before. Errors: Unavailable.
  void read(std::int64_t offset, std::span<std::byte> bytes) const;

 private:
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

}  // namespace nibble
