#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// A whole regular file mapped read-only. Views into it live as long as it does. Move only.
class MappedFile {
 public:
  MappedFile() = default;
  /// Errors: NotFound, Unsupported (directory, FIFO, device), Unavailable (permission), each with the path.
  static MappedFile open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_bytes_}; }
  std::size_t size_bytes() const { return size_bytes_; }
  const std::filesystem::path& path() const { return path_; }

  /// Tells the kernel that these bytes of the mapping are not needed for now: resident memory falls, and a
  /// later read brings them back. Whole pages inside the range only.
  void release(std::span<const std::byte> range) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_bytes_ = 0;
};

/// A mapped file that another program truncates makes the next read of its lost pages a SIGBUS. After this call such a
/// read ends the process with one line on stderr that names the file, and exit code 1, instead of a core dump. Call
/// once, at start.
void report_mapping_faults();

/// A file that appears under its name only when complete: written to a temporary name beside it, synced,
/// renamed by `commit`. Destroyed without `commit`, it leaves nothing behind. Errors name the path. Move only.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  /// The file under a temporary name of the caller's choosing, which stays when it is destroyed without a commit, so
  /// that a later run can go on: created if absent, cut off behind `size_bytes`, where writing continues. `commit_as`
  /// gives it its name, in any folder of the same file system. Errors: Corrupt where it is shorter than that.
  static AtomicFile reopen(std::filesystem::path temporary_path, std::int64_t size_bytes);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// Overwrites bytes written before, such as a header whose content is known last.
  void write_at(std::int64_t offset, std::span<const std::byte> bytes);
  /// Bytes appended so far.
  std::int64_t position() const { return position_; }

  /// What was written so far survives a power cut from now on.
  void sync();
  /// Syncs and closes; the file keeps its temporary name and takes no more bytes.
  void seal();
  /// Seals where that has not happened, then gives the file its name.
  void commit();
  /// `commit` under another name in the same file system.
  void commit_as(const std::filesystem::path& path);

 private:
  AtomicFile(std::filesystem::path temporary_path, int descriptor, std::int64_t position);

  std::filesystem::path path_;
  std::filesystem::path temporary_path_;
  bool is_kept_ = false;  // the temporary file, when nothing was committed
  int descriptor_ = -1;
  std::int64_t position_ = 0;
};

/// The whole file as text. Errors: as MappedFile; InvalidArgument above `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{1} << 30);
/// A text to calibrate or measure on: as read_text_file, but with the line ends \r\n and \r as \n, which is how
/// Python's text mode reads it and so what other programs' token counts and perplexities stand for.
std::string read_corpus_file(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{1} << 30);
/// The text with its line ends \r\n and \r as \n.
std::string with_unix_line_ends(std::string text);
/// Writes through an AtomicFile; a link is followed, and a device or FIFO written into where it stands.
void write_text_file(const std::filesystem::path& path, std::string_view text);
/// Makes the names in a folder (files created, renamed, removed) survive a power cut, where its file system can.
void sync_folder(const std::filesystem::path& folder);
/// A safe file name inside a folder: no separator, no "..", not empty, not absolute.
bool is_plain_file_name(std::string_view name);

}  // namespace nibble
