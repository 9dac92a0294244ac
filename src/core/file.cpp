#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/mapping_faults.h"

namespace nibble {
namespace {

ErrorCode code_of(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
    case ELOOP: return ErrorCode::NotFound;
    case ENOMEM: return ErrorCode::OutOfMemory;
    default: return ErrorCode::Unavailable;
  }
}

[[noreturn]] void throw_file_error(const char* action, const std::filesystem::path& path) {
  const int error_number = errno;
  throw Error(code_of(error_number), path.string() + ": cannot " + action + ": " + std::strerror(error_number));
}

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK keeps the open of a FIFO from waiting for a writer; it is refused below.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_file_error("open", path);
  struct stat status{};
  const bool known = ::fstat(descriptor, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw Error(ErrorCode::Unsupported, path.string() + ": not a regular file");
  }
  MappedFile file;
  file.path_ = path;
  file.size_bytes_ = static_cast<std::size_t>(status.st_size);
  if (file.size_bytes_ > 0) {
    void* data = ::mmap(nullptr, file.size_bytes_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) {
      const int error_number = errno;
      ::close(descriptor);
      errno = error_number;
      throw_file_error("map", path);
    }
    file.data_ = static_cast<const std::byte*>(data);
    remember_mapping(file.bytes(), path.string());
  }
  ::close(descriptor);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

void MappedFile::release(std::span<const std::byte> range) const {
  if (range.empty()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  std::string pattern = path_.string() + ".tmp-XXXXXX";
  descriptor_ = ::mkostemp(pattern.data(), O_CLOEXEC);
  if (descriptor_ < 0) throw_file_error("create", path_);
  ::fchmod(descriptor_, 0644);
  temporary_path_ = pattern;
}

AtomicFile::AtomicFile(std::filesystem::path temporary_path, int descriptor, std::int64_t position)
    : path_(temporary_path),
      temporary_path_(std::move(temporary_path)),
      is_kept_(true),
      descriptor_(descriptor),
      position_(position) {}

AtomicFile AtomicFile::reopen(std::filesystem::path temporary_path, std::int64_t size_bytes) {
  const int descriptor = ::open(temporary_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) throw_file_error("open", temporary_path);
  AtomicFile file(std::move(temporary_path), descriptor, size_bytes);
  struct stat status{};
  if (::fstat(descriptor, &status) != 0) throw_file_error("look at", file.path_);
  if (status.st_size < size_bytes) {
    throw Error(ErrorCode::Corrupt, file.path_.string() + ": holds " + std::to_string(status.st_size) +
                                        " bytes of the " + std::to_string(size_bytes) + " that were written");
  }
  if (::ftruncate(descriptor, size_bytes) != 0) throw_file_error("cut off", file.path_);
  if (::lseek(descriptor, size_bytes, SEEK_SET) < 0) throw_file_error("seek in", file.path_);
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::exchange(other.temporary_path_, {})),
      is_kept_(other.is_kept_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      position_(other.position_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_path_.empty() && !is_kept_) ::unlink(temporary_path_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_file_error("write", path_);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    position_ += written;
  }
}

void AtomicFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  check(offset >= 0 && offset + static_cast<std::int64_t>(bytes.size()) <= position_,
        "AtomicFile::write_at beyond what was written");
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_file_error("write", path_);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += written;
  }
}

void AtomicFile::sync() {
  if (::fsync(descriptor_) != 0) throw_file_error("sync", path_);
}

void AtomicFile::seal() {
  if (descriptor_ < 0) return;
  sync();
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_file_error("close", path_);
}

void AtomicFile::commit_as(const std::filesystem::path& path) {
  path_ = path;
  commit();
}

void AtomicFile::commit() {
  seal();
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) throw_file_error("rename the temporary file to", path_);
  temporary_path_.clear();
  sync_folder(path_.parent_path());
}

std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const MappedFile file = MappedFile::open(path);
  if (file.size_bytes() > max_bytes) {
    throw Error(ErrorCode::InvalidArgument, path.string() + ": " + std::to_string(file.size_bytes()) +
                                                " bytes; at most " + std::to_string(max_bytes) + " are read");
  }
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size_bytes()};
}

std::string read_corpus_file(const std::filesystem::path& path, std::size_t max_bytes) {
  return with_unix_line_ends(read_text_file(path, max_bytes));
}

std::string with_unix_line_ends(std::string text) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool is_return = text[i] == '\r';
    text[kept++] = is_return ? '\n' : text[i];
    if (is_return && i + 1 < text.size() && text[i + 1] == '\n') ++i;
  }
  text.resize(kept);
  return text;
}

namespace {

/// What is no regular file is written into: renaming another file over /dev/stdout, /dev/null or a FIFO would take it
/// from everybody.
void write_into(const std::filesystem::path& path, std::string_view text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) throw_file_error("open", path);
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error_number = errno;
      ::close(descriptor);
      errno = error_number;
      throw_file_error("write", path);
    }
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::close(descriptor) != 0) throw_file_error("close", path);
}

}  // namespace

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);  // of what a link leads to
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) return write_into(path, text);
  // A link stays; the file that it names is replaced.
  AtomicFile file(std::filesystem::is_regular_file(status) ? std::filesystem::canonical(path) : path);
  file.write(text);
  file.commit();
}

void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // the change itself succeeded; only its durability is the file system's matter
  ::fsync(descriptor);
  ::close(descriptor);
}

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace nibble
