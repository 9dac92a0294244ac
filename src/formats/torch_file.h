#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "formats/tensor_file.h"

/// What torch.save writes since 1.6, .pt or .bin: a zip archive whose data.pkl is a state dict and whose data/KEY are
/// raw storages, stored without compression (formats.md §0.1). Nothing in it is executed (pickle.h).
namespace nibble::formats {

/// Lists the tensors of a whole file. Those that are not contiguous get a fault.
/// Errors: Corrupt, and Unsupported for pickles of older torch, compressed archives and what pickle.h refuses.
TensorHeader parse_torch_file(std::span<const std::byte> file);

/// Errors: as MappedFile::open and parse_torch_file, each with the path; a git-lfs pointer is named as such.
TensorFile open_torch_file(const std::filesystem::path& path);

}  // namespace nibble::formats
