#include "formats/checkpoint.h"

#include <fmt/format.h>

#include <cstring>

#include "core/file.h"
#include "formats/folder_checkpoint.h"
#include "formats/gguf_checkpoint.h"

namespace nibble::formats {
namespace {

bool begins_with_gguf_magic(const std::filesystem::path& path) {
  const MappedFile file = MappedFile::open(path);
  return file.size_bytes() >= 4 && std::memcmp(file.bytes().data(), "GGUF", 4) == 0;
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorCode::NotFound, fmt::format("{}: no such model folder or GGUF file{}", path.string(),
                                                 error ? " (" + error.message() + ")" : ""));
  }
  if (std::filesystem::is_directory(status)) return open_folder(path);
  if (path.extension() == ".gguf" || begins_with_gguf_magic(path)) return open_gguf(path);
  throw Error(
      ErrorCode::InvalidArgument,
      fmt::format("{}: neither a model folder nor a GGUF file; pass the folder that holds config.json", path.string()));
}

}  // namespace nibble::formats
