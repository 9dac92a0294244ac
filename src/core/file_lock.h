#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace nibble {

/// An exclusive lock between processes: a file, locked while this object lives or its process does, whose content says
/// who holds it. The file stays behind on destruction, unlocked; `remove` takes it away. Move only.
class FileLock {
 public:
  /// Creates the file. Nothing where another process holds the lock. Errors: Unavailable naming the path.
  static std::optional<FileLock> try_acquire(const std::filesystem::path& path, const std::string& holder);
  /// What the holder wrote; empty where it has not yet, or the file is gone.
  static std::string read_holder(const std::filesystem::path& path);

  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

  /// Unlocks and deletes the file. Whoever waits for this file finds a new one.
  void remove();

 private:
  FileLock(std::filesystem::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace nibble
