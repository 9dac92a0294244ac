#include "formats/zip_archive.h"

#include <fmt/format.h>
#include <minizip/unzip.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "core/error.h"

namespace nibble::formats {
namespace {

/// A position in the archive, for minizip's file functions.
struct Cursor {
  std::span<const std::byte> archive;
  ZPOS64_T position = 0;
};

void* open_cursor(void* opaque, const void*, int) {
  return opaque;
}
uLong read_cursor(void*, void* stream, void* buffer, uLong size) {
  auto& cursor = *static_cast<Cursor*>(stream);
  const std::size_t count = std::min<std::size_t>(size, cursor.archive.size() - cursor.position);
  std::memcpy(buffer, cursor.archive.data() + cursor.position, count);
  cursor.position += count;
  return count;
}
ZPOS64_T tell_cursor(void*, void* stream) {
  return static_cast<Cursor*>(stream)->position;
}
long seek_cursor(void*, void* stream, ZPOS64_T offset, int origin) {
  auto& cursor = *static_cast<Cursor*>(stream);
  const ZPOS64_T base = origin == ZLIB_FILEFUNC_SEEK_CUR   ? cursor.position
                        : origin == ZLIB_FILEFUNC_SEEK_END ? cursor.archive.size()
                                                           : 0;
  if (offset > cursor.archive.size() - base) return -1;
  cursor.position = base + offset;
  return 0;
}
int close_cursor(void*, void*) {
  return 0;
}
int no_error(void*, void*) {
  return 0;
}

struct CloseZip {
  void operator()(void* zip) const { unzClose(zip); }
};
using Zip = std::unique_ptr<void, CloseZip>;

void expect_ok(int status, const char* what) {
  if (status != UNZ_OK) throw Error(ErrorCode::Corrupt, fmt::format("broken zip archive: {}", what));
}

Zip open_zip(Cursor& cursor) {
  zlib_filefunc64_def functions{};
  functions.zopen64_file = open_cursor;
  functions.zread_file = read_cursor;
  functions.ztell64_file = tell_cursor;
  functions.zseek64_file = seek_cursor;
  functions.zclose_file = close_cursor;
  functions.zerror_file = no_error;
  functions.opaque = &cursor;
  Zip zip(unzOpen2_64("", &functions));
  if (zip == nullptr) throw Error(ErrorCode::Corrupt, "broken zip archive: no directory at its end");
  return zip;
}

/// The current file of `zip`; minizip compares its local header with the directory on the way.
std::pair<std::string, ZipEntry> read_entry(void* zip, const Cursor& cursor) {
  constexpr uLong kEncrypted = 1;
  std::array<char, 1024> name{};
  unz_file_info64 info{};
  expect_ok(unzGetCurrentFileInfo64(zip, &info, name.data(), name.size(), nullptr, 0, nullptr, 0), "a directory entry");
  if (info.size_filename >= name.size()) throw Error(ErrorCode::Corrupt, "broken zip archive: an endless file name");
  const std::string file(name.data(), info.size_filename);
  if ((info.flag & kEncrypted) != 0)
    throw Error(ErrorCode::Unsupported, fmt::format("zip archive: {} is encrypted", file));
  expect_ok(unzOpenCurrentFile2(zip, nullptr, nullptr, 1), "a file's header");
  const ZPOS64_T begin = unzGetCurrentFileZStreamPos64(zip);
  unzCloseCurrentFile(zip);
  if (begin > cursor.archive.size() || info.compressed_size > cursor.archive.size() - begin) {
    throw Error(ErrorCode::Corrupt, fmt::format("zip archive: {} goes past its end; the download is incomplete", file));
  }
  return {file, {cursor.archive.subspan(begin, info.compressed_size), info.compression_method == 0}};
}

}  // namespace

std::map<std::string, ZipEntry, std::less<>> list_zip(std::span<const std::byte> archive) {
  Cursor cursor{archive};
  const Zip zip = open_zip(cursor);
  std::map<std::string, ZipEntry, std::less<>> entries;
  int status = unzGoToFirstFile(zip.get());
  for (; status == UNZ_OK; status = unzGoToNextFile(zip.get())) {
    auto [name, entry] = read_entry(zip.get(), cursor);
    if (!entries.emplace(name, entry).second) {
      throw Error(ErrorCode::Corrupt, fmt::format("zip archive: {} stands there twice", name));
    }
  }
  if (status != UNZ_END_OF_LIST_OF_FILE) expect_ok(status, "the directory ends early");
  return entries;
}

}  // namespace nibble::formats
