#include <array>
#include <string>

#include "models/block.h"
#include "models/llama.h"
#include "models/qwen2.h"

namespace nibble::models {
namespace {

constexpr std::array kArchitectures{
    Architecture{"LlamaForCausalLM", llama_block, "model.embed_tokens", "model.norm", "lm_head"},
    Architecture{"MistralForCausalLM", llama_block, "model.embed_tokens", "model.norm", "lm_head"},
    Architecture{"Qwen2ForCausalLM", qwen2_block, "model.embed_tokens", "model.norm", "lm_head"},
};

}  // namespace

const Architecture& find_architecture(std::string_view name) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  throw Error(ErrorCode::Unsupported,
              "architectures: \"" + std::string(name) + "\" is not supported; supported are " + known);
}

}  // namespace nibble::models
