#pragma once

#include "models/block.h"

namespace nibble::models {

/// The Llama block: four stages (q,k,v → o → gate,up → down) with RMS norms, rotary attention and SwiGLU. Serves every
/// architecture that differs in config values only (Llama 1–3, Mistral, SmolLM2, TinyLlama).
BlockSpec llama_block(const ModelConfig& config, std::int64_t layer_idx);

}  // namespace nibble::models
