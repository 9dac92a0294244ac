#include "core/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace nibble {
namespace {

[[noreturn]] void throw_lock_error(const char* action, const std::filesystem::path& path) {
  throw Error(ErrorCode::Unavailable, path.string() + ": cannot " + action + ": " + std::strerror(errno));
}

/// Whether the path still names the open file: its last holder may have deleted it between our open and our lock.
bool is_at(const std::filesystem::path& path, int descriptor) {
  struct stat opened{};
  struct stat named{};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

}  // namespace

std::optional<FileLock> FileLock::try_acquire(const std::filesystem::path& path, const std::string& holder) {
  for (;;) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) throw_lock_error("create", path);
    FileLock lock(path, descriptor);
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return std::nullopt;
      if (errno == EINTR) continue;
      throw_lock_error("lock", path);
    }
    if (!is_at(path, descriptor)) continue;
    // Only for people to read: a full disk that takes no text does not undo the lock.
    if (::ftruncate(descriptor, 0) == 0) {
      [[maybe_unused]] const ssize_t written = ::pwrite(descriptor, holder.data(), holder.size(), 0);
    }
    return lock;
  }
}

std::string FileLock::read_holder(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return {};
  std::array<char, 512> text{};
  const ssize_t size = ::read(descriptor, text.data(), text.size());
  ::close(descriptor);
  return size > 0 ? std::string(text.data(), static_cast<std::size_t>(size)) : std::string();
}

FileLock::FileLock(FileLock&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void FileLock::remove() {
  if (descriptor_ < 0) return;
  ::unlink(path_.c_str());  // before the lock is let go, so that nobody locks a file that is about to vanish
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace nibble
