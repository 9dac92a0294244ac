#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "core/json.h"
#include "core/tensor.h"
#include "weights/linear_weights.h"

namespace nibble::quantize {

/// What became of one linear: the journal keeps it, the report shows it.
struct LayerReport {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  std::string kind;  // weights::describe: "int4 g128 asym"
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  double bits_per_weight = 0;          // as stored: codes, scales, zeros, g_idx, tables, outliers
  double weight_error = 0;             // ‖Q - W‖² / ‖W‖², W the weights that were quantized (scales folded in)
  std::optional<double> rtn_error;     // relative error of the outputs (output_error) if rounded to nearest
  std::optional<double> output_error;  // the same of what was written; both only where the method calibrates
  float scale_min = 0;                 // smallest and largest |scale|; of a codebook: the narrowest and widest table
  float scale_max = 0;
  std::optional<double> clipped_fraction;  // integer grids: weights more than half a step outside what theirs reaches
  double seconds = 0;                      // of wall time; a stage's linears share its time by their sizes
};

/// Everything but errors of outputs and seconds. weight f32 [out, in] is what `quantized` stands for, `dequantized` f32
/// [out, in] its values.
LayerReport describe_layer(std::string name, Matrix<const float> weight, const weights::LinearWeights& quantized,
                           Matrix<const float> dequantized);

/// A stage's linears share its time by their sizes.
void share_time(std::span<LayerReport> layers, double seconds);

/// Wall time.
class Stopwatch {
 public:
  /// Seconds since it was made or last read.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Json to_json(const LayerReport& report);
/// Errors: InvalidArgument naming a key that is missing or of another type.
LayerReport layer_report_from_json(const Json& json);

}  // namespace nibble::quantize
