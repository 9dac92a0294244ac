#pragma once

#include <filesystem>
#include <memory>

#include "formats/checkpoint.h"

namespace nibble::formats {

/// One GGUF file under Hugging Face's names. Linears in Q4_0 and Q8_0 come as GroupedIntWeights (groups of 32), every
/// other quantized type as f16, rounded once from gguf-py's f32 values; F32, F16 and BF16 keep their type.
/// Errors: as Checkpoint::open.
std::unique_ptr<Checkpoint> open_gguf(const std::filesystem::path& path);

}  // namespace nibble::formats
