#include "models/kv_scales.h"

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "models/block.h"

namespace nibble::models {
namespace {

// Relative to the attention module; the first that is there counts.
constexpr std::array<std::string_view, 5> kKeyNames{"k_scale", "attn.k_scale", "k_proj.k_scale", "k_proj.output_scale",
                                                    "kv_scale"};
constexpr std::array<std::string_view, 5> kValueNames{"v_scale", "attn.v_scale", "v_proj.v_scale",
                                                      "v_proj.output_scale", "kv_scale"};

float read_scale(const formats::Checkpoint& checkpoint, const std::string& name) {
  const TensorView tensor = checkpoint.tensor(name);
  if (tensor.num_elements() != 1) {
    throw Error(ErrorCode::Unsupported, name + ": found shape " + tensor.shape().to_string() +
                                            "; KV scales are read one a layer, not one a head");
  }
  const float scale = to_dtype(tensor, DType::F32).span<float>()[0];
  if (std::isfinite(scale) && scale > 0) return scale;
  throw Error(ErrorCode::Corrupt, name + ": found " + std::to_string(scale) +
                                      "; a scale is a positive number, so the checkpoint is broken");
}

std::optional<float> find_scale(const formats::Checkpoint& checkpoint, const std::string& attention,
                                const std::array<std::string_view, 5>& names) {
  for (const std::string_view name : names) {
    const std::string full = attention + "." + std::string(name);
    if (checkpoint.contains(full)) return read_scale(checkpoint, full);
  }
  return std::nullopt;
}

}  // namespace

std::vector<KvScales> read_kv_scales(const formats::Checkpoint& checkpoint, const ModelConfig& config) {
  const Architecture& architecture = find_architecture(config.architecture);
  std::vector<KvScales> scales;
  bool found = false;
  for (std::int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    const BlockSpec spec = architecture.block(config, layer_idx);
    const std::string q_proj = spec.module_name(spec.stages.front().linears.front());
    const std::string attention = q_proj.substr(0, q_proj.rfind('.'));
    const auto key = find_scale(checkpoint, attention, kKeyNames);
    const auto value = find_scale(checkpoint, attention, kValueNames);
    found = found || key || value;
    scales.push_back({key.value_or(1.0f), value.value_or(1.0f)});
  }
  if (!found) scales.clear();
  return scales;
}

}  // namespace nibble::models
