#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"

namespace nibble::formats {

/// One tensor as it stands in the file.
struct TensorSummary {
  std::string name;
  std::string type;  // "F16", "I32", "Q4_K"; "?" where nibble does not know it
  std::vector<std::int64_t> sizes;
  std::int64_t size_bytes = 0;
};

/// Linears that are stored alike.
struct LinearSummary {
  std::string form;  // "int4 g64 sym", "fp8 per channel", "codebook 3 bit, sparse", "Q4_K"
  std::int64_t num_linears = 0;
  std::int64_t num_weights = 0;
  std::int64_t size_bytes = 0;  // scales, zero points and tables included
};

/// What a checkpoint is, as far as names, dtypes, shapes and configs tell.
struct ModelSummary {
  std::string architecture;  // config.json's, or "" where it names none
  std::string container;     // "safetensors", "torch.save" or "gguf"
  std::string method;        // "gptq", "awq", "fp8", …, "gguf", or "none"
  Json quantization;         // the config as it stands in the file, or null
  std::vector<LinearSummary> linears;
  std::vector<TensorSummary> tensors;  // sorted by name
  std::int64_t num_weights = 0;        // of the model: packed codes count one each, scales and tables not
  std::int64_t size_bytes = 0;
};

/// Reads headers only, so it is quick however large the files are.
/// Errors: as Checkpoint::open; Corrupt naming a tensor of a quantized linear whose shape cannot be.
ModelSummary summarize(const std::filesystem::path& path);

Json to_json(const ModelSummary& summary);

}  // namespace nibble::formats
