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

Tensor scales_to_write(const weights::GroupedIntWeights& weights) {
  const Tensor half = to_dtype(weights.scales, DType::F16);
  for (const Half value : half.span<Half>()) {
    const float scale = to_float(value);
    if (!std::isfinite(scale)) {
      throw Error(ErrorCode::Unsupported, "a scale exceeds 65504, the largest f16: the weights are too large for it");
    }
    if (scale == 0) {
      throw Error(ErrorCode::Unsupported,
                  "a scale is zero in f16; peers divide by it, so the quantizer must not make one");
    }
  }
  return transpose(half);
}

}  // namespace nibble::formats
