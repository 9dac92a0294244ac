#pragma once

#include <filesystem>
#include <memory>

#include "formats/checkpoint.h"

namespace nibble::formats {

/// A Hugging Face folder: config.json and safetensors, in one file or in shards with an index. Where an index exists it
/// is the truth: shard files it does not name are not read.
/// Errors: as Checkpoint::open. Folders that hold only pickles (pytorch_model.bin) are refused with the way to convert.
std::unique_ptr<Checkpoint> open_folder(const std::filesystem::path& folder);

}  // namespace nibble::formats
