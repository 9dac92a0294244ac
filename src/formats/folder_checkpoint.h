#pragma once

#include <filesystem>
#include <memory>

#include "formats/checkpoint.h"

namespace nibble::formats {

/// A Hugging Face folder: config.json and safetensors, in one file or in shards with an index. Where an index exists it
/// is the truth: shard files it does not name are not read. Without safetensors, what torch.save wrote is read:
/// pytorch_model.bin, its shards, or a lone .pt (torch_file.h).
/// Errors: as Checkpoint::open.
std::unique_ptr<Checkpoint> open_folder(const std::filesystem::path& folder);

}  // namespace nibble::formats
