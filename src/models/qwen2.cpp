#include "models/qwen2.h"

#include "models/llama.h"

namespace nibble::models {

BlockSpec qwen2_block(const ModelConfig& config, std::int64_t layer_idx) {
  if (config.sliding_window > 0) {
    throw Error(ErrorCode::Unsupported,
                "use_sliding_window: Qwen 2 with windows in some layers is not supported; full attention is");
  }
  return llama_block(config, layer_idx);
}

}  // namespace nibble::models
