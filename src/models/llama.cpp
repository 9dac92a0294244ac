#include "models/llama.h"

#include <cmath>

namespace nibble::models {

BlockSpec llama_block(const ModelConfig& config, std::int64_t layer_idx) {
  BlockSpec spec;
  spec.prefix = "model.layers." + std::to_string(layer_idx);
  spec.hidden_size = config.hidden_size;
  spec.intermediate_size = config.intermediate_size;
  spec.rms_norm_eps = static_cast<float>(config.rms_norm_eps);
  spec.attention = {.num_heads = static_cast<std::int32_t>(config.num_attention_heads),
                    .num_kv_heads = static_cast<std::int32_t>(config.num_key_value_heads),
                    .head_dim = static_cast<std::int32_t>(config.head_dim),
                    .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                    .sliding_window = static_cast<std::int32_t>(config.sliding_window)};
  const bool is_mha = config.num_attention_heads == config.num_key_value_heads;
  spec.stages = {
      {.prepare = Prepare::InputNorm,
       .linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
       .fold_producer = {FoldProducer::Kind::Norm, "input_layernorm"},
       .adds_to_hidden = false},
      {.prepare = Prepare::Attention,
       .linears = {"self_attn.o_proj"},
       .fold_producer = {is_mha ? FoldProducer::Kind::Linear : FoldProducer::Kind::LinearByHead, "self_attn.v_proj"},
       .adds_to_hidden = true},
      {.prepare = Prepare::PostAttentionNorm,
       .linears = {"mlp.gate_proj", "mlp.up_proj"},
       .fold_producer = {FoldProducer::Kind::Norm, "post_attention_layernorm"},
       .adds_to_hidden = false},
      {.prepare = Prepare::SiluMul,
       .linears = {"mlp.down_proj"},
       .fold_producer = {FoldProducer::Kind::Linear, "mlp.up_proj"},
       .adds_to_hidden = true},
  };
  return spec;
}

}  // namespace nibble::models
