#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace nibble::formats {

/// One file of an archive.
struct ZipEntry {
  std::span<const std::byte> bytes;  // as they lie in the archive
  bool is_stored = true;             // not compressed: `bytes` are the content
};

/// The files of a zip archive in memory, by name. Their check sums are not compared: weights are read where they lie.
/// Errors: Corrupt where the archive does not hold together; Unsupported for encrypted files.
std::map<std::string, ZipEntry, std::less<>> list_zip(std::span<const std::byte> archive);

}  // namespace nibble::formats
