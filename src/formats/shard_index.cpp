#include "formats/shard_index.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "formats/safetensors.h"

namespace nibble::formats {

std::optional<std::filesystem::path> find_shard_index(const std::filesystem::path& folder) {
  constexpr std::string_view kSuffix = ".safetensors.index.json";
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::string name = entry.path().filename().string();
    if (name.ends_with(kSuffix)) names.push_back(std::move(name));
  }
  if (error) {
    throw Error(ErrorCode::Unavailable, fmt::format("{}: cannot list: {}", folder.string(), error.message()));
  }
  if (names.empty()) return std::nullopt;
  std::ranges::sort(names);
  const auto usual = std::ranges::find(names, "model" + std::string(kSuffix));
  if (usual == names.end() && names.size() > 1) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: several indexes ({}, {}), none of them model{}", folder.string(),
                                                names[0], names[1], kSuffix));
  }
  return folder / (usual != names.end() ? *usual : names.front());
}

ShardIndex parse_shard_index(std::span<const std::byte> text) {
  refuse_lfs_pointer(text);
  const simdjson::padded_string padded(reinterpret_cast<const char*>(text.data()), text.size());
  simdjson::dom::parser parser;
  simdjson::dom::object weight_map;
  if (const auto error = parser.parse(padded)["weight_map"].get(weight_map); error != simdjson::SUCCESS) {
    throw Error(ErrorCode::Corrupt, fmt::format("weight_map: {}", simdjson::error_message(error)));
  }
  ShardIndex index;
  for (const auto& [tensor, value] : weight_map) {
    std::string_view shard;
    if (value.get(shard) != simdjson::SUCCESS || !is_plain_file_name(shard)) {
      throw Error(ErrorCode::Corrupt, fmt::format("weight_map: {}: expected a file name in this folder", tensor));
    }
    if (!index.emplace(tensor, shard).second) {
      throw Error(ErrorCode::Corrupt, fmt::format("weight_map: {} stands there twice", tensor));
    }
  }
  if (index.empty()) throw Error(ErrorCode::Corrupt, "weight_map is empty");
  return index;
}

ShardIndex read_shard_index(const std::filesystem::path& path) {
  const MappedFile file = MappedFile::open(path);
  return parse_shard_index(file.bytes());
}

}  // namespace nibble::formats
