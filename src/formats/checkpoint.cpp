#include "formats/checkpoint.h"

#include <fmt/format.h>

#include "formats/folder_checkpoint.h"

namespace nibble::formats {

std::unique_ptr<Checkpoint> Checkpoint::open(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorCode::NotFound, fmt::format("{}: no such model folder or GGUF file{}", path.string(),
                                                 error ? " (" + error.message() + ")" : ""));
  }
  if (std::filesystem::is_directory(status)) return open_folder(path);
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("{}: not a model folder; pass the folder that holds config.json", path.string()));
}

}  // namespace nibble::formats
