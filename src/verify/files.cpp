#include "verify/files.h"

#include <fmt/format.h>

#include <map>
#include <string>

#include "core/error.h"
#include "formats/safetensors.h"
#include "formats/shard_index.h"

namespace nibble::verify {
namespace {

std::string name_tensors(const std::vector<std::string>& tensors) {
  if (tensors.size() == 1) return tensors.front();
  return fmt::format("{} and {} more", tensors.front(), tensors.size() - 1);
}

void check_shard(const std::filesystem::path& path, const std::vector<std::string>& tensors,
                 std::vector<Finding>& findings) {
  try {
    const formats::TensorFile file = formats::open_safetensors(path);
    for (const std::string& tensor : tensors) {
      if (file.contains(tensor)) continue;
      findings.push_back({tensor, fmt::format("{} should hold it, but does not", path.filename().string())});
    }
  } catch (const Error& error) {
    findings.push_back({name_tensors(tensors), fmt::format("lost: {}", error.what())});
  }
}

}  // namespace

std::vector<Finding> check_shards(const std::filesystem::path& folder) {
  std::vector<Finding> findings;
  const auto path = formats::find_shard_index(folder);
  if (!path) return findings;
  std::map<std::string, std::vector<std::string>> tensors_of_file;
  try {
    for (const auto& [tensor, file] : formats::read_shard_index(*path)) tensors_of_file[file].push_back(tensor);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::Corrupt) throw;
    return {{path->filename().string(), error.what()}};
  }
  for (const auto& [file, tensors] : tensors_of_file) check_shard(folder / file, tensors, findings);
  return findings;
}

}  // namespace nibble::verify
