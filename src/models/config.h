#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/json.h"

namespace nibble::models {

/// rope_scaling of config.json (also read from rope_parameters of newer transformers).
struct RopeScaling {
  std::string type;  // "default", "linear", "llama3", "yarn", "dynamic", …
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  std::int64_t original_max_position_embeddings = 0;
};

/// What nibble needs of a model's config.json; vocabulary and names as there.
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  std::int64_t sliding_window = 0;  // 0: full attention
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  std::string hidden_act = "silu";
  DType dtype = DType::F16;  // torch_dtype
  std::vector<std::int64_t> eos_token_ids;
  std::optional<std::int64_t> bos_token_id;
};

/// Reads and checks config.json: sizes positive and bounded, heads divide, known activation, rope types that nibble
/// computes. `auto_map` is never executed; it is ignored where the architecture is known.
/// Errors: InvalidArgument naming the key; Unsupported naming the architecture and those that are supported.
ModelConfig parse_model_config(const Json& config);

/// Radians per position of each rotary pair, [head_dim / 2], with the config's scaling applied (f64 inside).
std::vector<float> rope_inverse_frequencies(const ModelConfig& config);

}  // namespace nibble::models
