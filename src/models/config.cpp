#include "models/config.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <string_view>

namespace nibble::models {
namespace {

// Far above every published model; keeps products of sizes inside int64 and a hostile config from asking for terabytes.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;
constexpr std::int64_t kMaxLayers = 4096;

std::int64_t get_size(const Json& config, const char* key, std::int64_t fallback, std::int64_t max = kMaxSize) {
  const std::int64_t value =
      fallback > 0 ? get_or<std::int64_t>(config, key, fallback) : get<std::int64_t>(config, key);
  if (value < 1 || value > max) {
    throw Error(ErrorCode::InvalidArgument,
                std::string(key) + ": " + std::to_string(value) + " is outside 1…" + std::to_string(max));
  }
  return value;
}

DType parse_dtype(const Json& config) {
  // transformers 5 writes "dtype" where older versions wrote "torch_dtype".
  const auto fallback = get_or<std::string>(config, "dtype", "float16");
  const auto text = get_or<std::string>(config, "torch_dtype", fallback);
  if (text == "float32") return DType::F32;
  if (text == "bfloat16") return DType::BF16;
  if (text == "float16") return DType::F16;
  throw Error(ErrorCode::Unsupported, "torch_dtype: \"" + text + "\"; float16, bfloat16 and float32 are supported");
}

std::vector<std::int64_t> parse_token_ids(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return {};
  std::vector<std::int64_t> ids;
  for (const Json& id : found->is_array() ? *found : Json::array({*found})) {
    if (!id.is_number_integer()) {
      throw Error(ErrorCode::InvalidArgument, std::string(key) + ": expected token ids");
    }
    ids.push_back(id.get<std::int64_t>());
  }
  return ids;
}

RopeScaling parse_rope_scaling(const Json& json) {
  RopeScaling scaling;
  scaling.type = get_or<std::string>(json, "rope_type", get_or<std::string>(json, "type", "default"));
  scaling.factor = get_or(json, "factor", 1.0);
  scaling.low_freq_factor = get_or(json, "low_freq_factor", 1.0);
  scaling.high_freq_factor = get_or(json, "high_freq_factor", 4.0);
  scaling.original_max_position_embeddings = get_or<std::int64_t>(json, "original_max_position_embeddings", 8192);
  constexpr std::array<std::string_view, 3> kKnown{"default", "linear", "llama3"};
  for (const std::string_view known : kKnown) {
    if (scaling.type == known) {
      if (!(scaling.factor >= 1.0) || scaling.high_freq_factor == scaling.low_freq_factor) {
        throw Error(ErrorCode::InvalidArgument, "rope_scaling: factor below 1 or equal frequency factors");
      }
      return scaling;
    }
  }
  throw Error(ErrorCode::Unsupported,
              "rope_scaling: type \"" + scaling.type + "\"; default, linear and llama3 are supported");
}

void parse_rope(const Json& config, ModelConfig& model) {
  model.rope_theta = get_or(config, "rope_theta", 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const auto found = config.find(key);
    if (found == config.end() || !found->is_object()) continue;
    model.rope_theta = get_or(*found, "rope_theta", model.rope_theta);
    const RopeScaling scaling = parse_rope_scaling(*found);
    if (scaling.type != "default") model.rope_scaling = scaling;
  }
  if (!(model.rope_theta > 0)) throw Error(ErrorCode::InvalidArgument, "rope_theta: must be positive");
}

void parse_heads(const Json& config, ModelConfig& model) {
  model.num_attention_heads = get_size(config, "num_attention_heads", 0);
  model.num_key_value_heads = get_size(config, "num_key_value_heads", model.num_attention_heads);
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    throw Error(ErrorCode::InvalidArgument, "num_key_value_heads: " + std::to_string(model.num_key_value_heads) +
                                                " does not divide num_attention_heads " +
                                                std::to_string(model.num_attention_heads));
  }
  const auto given = get_optional<std::int64_t>(config, "head_dim");
  if (!given && model.hidden_size % model.num_attention_heads != 0) {
    throw Error(ErrorCode::InvalidArgument, "num_attention_heads: " + std::to_string(model.num_attention_heads) +
                                                " does not divide hidden_size " + std::to_string(model.hidden_size));
  }
  model.head_dim = given ? get_size(config, "head_dim", 0) : model.hidden_size / model.num_attention_heads;
  if (model.head_dim % 2 != 0) throw Error(ErrorCode::InvalidArgument, "head_dim: rotary embedding needs it even");
}

/// Added to a mean square in f32: anything else makes NaN of some row.
double parse_norm_eps(const Json& config) {
  const double eps = get_or(config, "rms_norm_eps", 1e-6);
  if (std::isfinite(static_cast<float>(eps)) && static_cast<float>(eps) > 0) return eps;
  throw Error(ErrorCode::InvalidArgument, fmt::format("rms_norm_eps: {} is no positive number", eps));
}

std::string parse_architecture(const Json& config) {
  const auto names = get_optional<std::vector<std::string>>(config, "architectures");
  if (!names || names->empty()) {
    throw Error(ErrorCode::InvalidArgument, "architectures: missing; expected a list such as [\"LlamaForCausalLM\"]");
  }
  return names->front();
}

}  // namespace

ModelConfig parse_model_config(const Json& config) {
  ModelConfig model;
  model.architecture = parse_architecture(config);
  model.model_type = get_or<std::string>(config, "model_type", "");
  model.hidden_size = get_size(config, "hidden_size", 0);
  model.intermediate_size = get_size(config, "intermediate_size", 0);
  model.num_hidden_layers = get_size(config, "num_hidden_layers", 0, kMaxLayers);
  model.vocab_size = get_size(config, "vocab_size", 0);
  model.max_position_embeddings = get_size(config, "max_position_embeddings", 2048);
  model.rms_norm_eps = parse_norm_eps(config);
  parse_heads(config, model);
  parse_rope(config, model);
  // Mistral's configs have a window and no switch, Qwen 2's a window that is switched off unless they say otherwise.
  if (get_or(config, "use_sliding_window", model.model_type != "qwen2")) {
    model.sliding_window = get_or<std::int64_t>(config, "sliding_window", 0);
  }
  model.attention_bias = get_or(config, "attention_bias", false);
  model.mlp_bias = get_or(config, "mlp_bias", false);
  model.tie_word_embeddings = get_or(config, "tie_word_embeddings", false);
  model.hidden_act = get_or<std::string>(config, "hidden_act", "silu");
  if (model.hidden_act != "silu") {
    throw Error(ErrorCode::Unsupported, "hidden_act: \"" + model.hidden_act + "\"; only silu is supported");
  }
  model.dtype = parse_dtype(config);
  model.eos_token_ids = parse_token_ids(config, "eos_token_id");
  if (const auto bos = parse_token_ids(config, "bos_token_id"); !bos.empty()) model.bos_token_id = bos.front();
  return model;
}

}  // namespace nibble::models
