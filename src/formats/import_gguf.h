#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace nibble::formats {

struct ImportOptions {
  std::filesystem::path gguf;
  std::filesystem::path output;  // folder, created
  /// Called after each tensor.
  std::function<void(std::int64_t done, std::int64_t total)> on_tensor = [](std::int64_t, std::int64_t) {};
};

/// Writes a GGUF file as a Hugging Face FP16 checkpoint: weights, config.json, generation_config.json, tokenizer.json
/// and tokenizer_config.json with the chat template. Returns the bytes of all tensors written.
/// Errors: as Checkpoint::open and CheckpointWriter; Unsupported for values that f16 cannot hold.
std::int64_t import_gguf(const ImportOptions& options);

}  // namespace nibble::formats
