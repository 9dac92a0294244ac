#include "formats/linear_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "formats/transpose.h"

namespace nibble::formats {

TensorView ModuleTensors::get(std::string_view suffix, DType dtype, const Shape& shape) const {
  const TensorView tensor = get(suffix);
  if (tensor.dtype() == dtype && tensor.shape() == shape) return tensor;
  throw Error(ErrorCode::Corrupt,
              fmt::format("{}: expected {} {}, found {} {}", name(suffix), nibble::name(dtype), shape.to_string(),
                          nibble::name(tensor.dtype()), tensor.shape().to_string()));
}

TensorView ModuleTensors::get_float(std::string_view suffix, const Shape& shape) const {
  const TensorView tensor = get(suffix);
  const bool is_plain_float = is_float(tensor.dtype()) && tensor.dtype() != DType::F8E4M3;
  if (is_plain_float && tensor.shape() == shape) return tensor;
  throw Error(ErrorCode::Corrupt,
              fmt::format("{}: expected F16, BF16 or F32 of shape {}, found {} {}", name(suffix), shape.to_string(),
                          nibble::name(tensor.dtype()), tensor.shape().to_string()));
}

Tensor read_bias(const ModuleTensors& tensors, std::int64_t out_features) {
  if (!tensors.contains("bias")) return {};
  Tensor bias = to_dtype(tensors.get_float("bias", {out_features}), DType::F32);
  const auto values = bias.span<float>();
  if (std::all_of(values.begin(), values.end(), [](float value) { return value == 0; })) return {};
  return bias;
}

void refuse_kind(const weights::LinearWeights& weights, std::string_view format) {
  throw Error(ErrorCode::Unsupported, fmt::format("{} cannot be written as '{}'", weights::describe(weights), format));
}

bool is_quantized(const ModuleTensors& tensors) {
  for (const LinearFormat& format : linear_formats()) {
    for (const TensorSet& set : format.tensor_sets) {
      if (tensors.contains(set.mark)) return true;
    }
  }
  return tensors.contains("weight") && tensors.get("weight").dtype() == DType::F8E4M3;
}

std::optional<std::string> find_fault(std::span<const std::string_view> suffixes) {
  const auto has = [&](std::string_view suffix) { return std::ranges::find(suffixes, suffix) != suffixes.end(); };
  const auto holds_weight = [](const TensorSet& set) {
    return std::ranges::find(set.others, "weight") != set.others.end();
  };
  std::optional<std::string> fault;
  for (const LinearFormat& format : linear_formats()) {
    for (const TensorSet& set : format.tensor_sets) {
      if (!has(set.mark)) continue;
      const auto missing =
          std::ranges::find_if(set.others, [&](std::string_view other) { return !other.empty() && !has(other); });
      if (missing == set.others.end()) {
        if (has("weight") && !holds_weight(set)) return fmt::format("has both {} and weight", set.mark);
        return std::nullopt;
      }
      if (!fault) fault = fmt::format("lacks {}", *missing);
    }
  }
  return fault;
}

void check_scales_to_write(const Tensor& scales) {
  const Tensor values = to_dtype(scales, DType::F32);
  for (const float scale : values.span<float>()) {
    if (!std::isfinite(scale)) {
      throw Error(ErrorCode::Unsupported, "a scale exceeds 65504, the largest f16: the weights are too large for it");
    }
    if (scale == 0) {
      throw Error(ErrorCode::Unsupported,
                  "a scale is zero in f16; peers divide by it, so the quantizer must not make one");
    }
  }
}

Tensor scales_to_write(const weights::GroupedIntWeights& weights) {
  const Tensor half = to_dtype(weights.scales, DType::F16);
  check_scales_to_write(half);
  return transpose(half);
}

std::vector<std::string> modules_kept_float(const QuantizationConfig& config) {
  std::vector<std::string> kept = config.modules_to_not_convert;
  const auto is_head = [](const ModuleScheme& scheme) { return scheme.module == "lm_head"; };
  const bool is_named = std::ranges::find(kept, "lm_head") != kept.end();
  if (!is_named && std::ranges::none_of(config.modules, is_head)) kept.emplace_back("lm_head");
  return kept;
}

}  // namespace nibble::formats
