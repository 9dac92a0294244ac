#pragma once

#include <filesystem>
#include <vector>

#include "verify/finding.h"

namespace nibble::verify {

/// What is wrong with the shards that a folder's index names: missing, truncated, or without a tensor they should
/// hold. Each finding names the tensors that are lost. Nothing for a folder without an index.
std::vector<Finding> check_shards(const std::filesystem::path& folder);

}  // namespace nibble::verify
