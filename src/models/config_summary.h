#pragma once

#include <filesystem>

#include "formats/inspect.h"

namespace nibble::models {

/// What the checkpoint of a folder with only config.json would hold: names, shapes and bytes of its tensors as the
/// format of its quantization_config stores them (awq, gptq, fp8 per channel or squeezellm, else 16 bits), biases left
/// out. So a model's size is known before its files are there. Errors: as parse_model_config; Unsupported for another
/// quant_method.
formats::ModelSummary summarize_config(const std::filesystem::path& folder);

}  // namespace nibble::models
