#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>

namespace nibble::formats {

/// Which tensor stands in which shard: tensor → file name in the index's folder.
using ShardIndex = std::map<std::string, std::string, std::less<>>;

/// The index of a folder: model.safetensors.index.json, or the only one there is. Nothing where there is none.
/// Errors: Corrupt where there are several and none has the usual name; Unavailable.
std::optional<std::filesystem::path> find_shard_index(const std::filesystem::path& folder);

/// Errors: Corrupt for anything but a weight_map of plain file names, each tensor once.
ShardIndex parse_shard_index(std::span<const std::byte> text);
/// Errors: as parse_shard_index and MappedFile::open.
ShardIndex read_shard_index(const std::filesystem::path& path);

}  // namespace nibble::formats
