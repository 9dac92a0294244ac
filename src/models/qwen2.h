#pragma once

#include "models/block.h"

namespace nibble::models {

/// Qwen 2 and 2.5: the Llama block with biases on q, k, v, which the loader takes from the checkpoint.
/// Errors: Unsupported where config.json switches on sliding windows for some layers only.
BlockSpec qwen2_block(const ModelConfig& config, std::int64_t layer_idx);

}  // namespace nibble::models
