#include "quantize/layer_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::quantize {
namespace {

struct ScaleRange {
  float min = std::numeric_limits<float>::max();
  float max = 0;
  void add(float scale) {
    min = std::min(min, std::abs(scale));
    max = std::max(max, std::abs(scale));
  }
};

ScaleRange range_of(const Tensor& scales) {
  ScaleRange range;
  const Tensor floats = to_dtype(scales, DType::F32);
  for (const float scale : floats.span<float>()) range.add(scale);
  return range;
}

ScaleRange scale_range(const weights::DenseWeights&) {
  ScaleRange none;
  none.add(0);
  return none;
}
ScaleRange scale_range(const weights::GroupedIntWeights& w) {
  return range_of(w.scales);
}
ScaleRange scale_range(const weights::Fp8Weights& w) {
  return range_of(w.scale);
}
ScaleRange scale_range(const weights::CodebookWeights& w) {
  ScaleRange range;
  const Tensor table = to_dtype(w.lookup_table, DType::F32);
  const auto rows = table.matrix<float>();
  for (std::int64_t o = 0; o < rows.rows; ++o) {
    const auto [low, high] = std::ranges::minmax(rows.row_span(o));
    range.add(high - low);
  }
  return range;
}

/// The values that a row's group can take, widened by half a step on both sides.
std::int64_t count_clipped(const weights::GroupedIntWeights& w, Matrix<const float> weight) {
  const Tensor scales = to_dtype(w.scales, DType::F32);
  const auto scale = scales.matrix<float>();
  const auto zero = w.zeros.matrix<std::int16_t>();
  const auto max_code = static_cast<float>((1 << w.bits) - 1);
  const auto g_idx = w.has_g_idx() ? w.g_idx.span<std::int32_t>() : std::span<const std::int32_t>();
  std::int64_t clipped = 0;
  for (std::int64_t o = 0; o < weight.rows; ++o) {
    for (std::int64_t i = 0; i < weight.cols; ++i) {
      const std::int64_t group = g_idx.empty() ? i / w.group_size : g_idx[static_cast<std::size_t>(i)];
      // In code units, so that a negative scale needs no case of its own. A slack for rounding in f32.
      const float code = weight.row(o)[i] / scale.row(o)[group] + static_cast<float>(zero.row(o)[group]);
      if (code < -0.5001f || code > max_code + 0.5001f) ++clipped;
    }
  }
  return clipped;
}

/// Zero points take as many bits as codes in every format; in memory they are wider.
std::int64_t bits_on_disk(const weights::LinearWeights& quantized) {
  std::int64_t bits = 8 * weights::size_bytes(quantized);
  if (const auto* grouped = std::get_if<weights::GroupedIntWeights>(&quantized)) {
    bits -= 8 * static_cast<std::int64_t>(grouped->zeros.size_bytes());
    bits += grouped->zeros.shape()[0] * grouped->zeros.shape()[1] * grouped->bits;
  }
  return bits;
}

double weight_error(Matrix<const float> weight, Matrix<const float> dequantized) {
  double error = 0;
  double norm = 0;
  for (std::int64_t o = 0; o < weight.rows; ++o) {
    for (std::int64_t i = 0; i < weight.cols; ++i) {
      const double difference = static_cast<double>(dequantized.row(o)[i]) - weight.row(o)[i];
      error += difference * difference;
      norm += static_cast<double>(weight.row(o)[i]) * weight.row(o)[i];
    }
  }
  return norm > 0 ? error / norm : 0;
}

void put(Json& json, const char* key, const std::optional<double>& value) {
  if (value) json[key] = *value;
}

}  // namespace

LayerReport describe_layer(std::string name, Matrix<const float> weight, const weights::LinearWeights& quantized,
                           Matrix<const float> dequantized) {
  LayerReport report;
  report.name = std::move(name);
  report.kind = weights::describe(quantized);
  report.out_features = weight.rows;
  report.in_features = weight.cols;
  const auto num_weights = static_cast<double>(weight.rows * weight.cols);
  report.bits_per_weight = static_cast<double>(bits_on_disk(quantized)) / num_weights;
  report.weight_error = weight_error(weight, dequantized);
  const ScaleRange scales = std::visit([](const auto& w) { return scale_range(w); }, quantized);
  report.scale_min = scales.min;
  report.scale_max = scales.max;
  if (const auto* grouped = std::get_if<weights::GroupedIntWeights>(&quantized)) {
    report.clipped_fraction = static_cast<double>(count_clipped(*grouped, weight)) / num_weights;
  }
  return report;
}

void share_time(std::span<LayerReport> layers, double seconds) {
  std::int64_t num_weights = 0;
  for (const LayerReport& layer : layers) num_weights += layer.out_features * layer.in_features;
  for (LayerReport& layer : layers) {
    const auto part = static_cast<double>(layer.out_features * layer.in_features) / static_cast<double>(num_weights);
    layer.seconds = seconds * part;
  }
}

Json to_json(const LayerReport& report) {
  Json json = {{"name", report.name},
               {"kind", report.kind},
               {"out_features", report.out_features},
               {"in_features", report.in_features},
               {"bits_per_weight", report.bits_per_weight},
               {"weight_error", report.weight_error}};
  put(json, "rtn_error", report.rtn_error);
  put(json, "output_error", report.output_error);
  json["scale_min"] = static_cast<double>(report.scale_min);
  json["scale_max"] = static_cast<double>(report.scale_max);
  put(json, "clipped_fraction", report.clipped_fraction);
  json["seconds"] = report.seconds;
  return json;
}

LayerReport layer_report_from_json(const Json& json) {
  LayerReport report;
  report.name = get<std::string>(json, "name");
  report.kind = get<std::string>(json, "kind");
  report.out_features = get<std::int64_t>(json, "out_features");
  report.in_features = get<std::int64_t>(json, "in_features");
  report.bits_per_weight = get<double>(json, "bits_per_weight");
  report.weight_error = get<double>(json, "weight_error");
  report.rtn_error = get_optional<double>(json, "rtn_error");
  report.output_error = get_optional<double>(json, "output_error");
  report.scale_min = static_cast<float>(get<double>(json, "scale_min"));
  report.scale_max = static_cast<float>(get<double>(json, "scale_max"));
  report.clipped_fraction = get_optional<double>(json, "clipped_fraction");
  report.seconds = get<double>(json, "seconds");
  return report;
}

}  // namespace nibble::quantize
