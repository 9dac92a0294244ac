#include "quantize/descent.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/dtype.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

constexpr float kLargestHalf = 65504.0f;

/// w - q
Tile difference_to(const Tile& weights, const QuantizedTile& quantized, std::int64_t group_size) {
  Tile difference(weights.num_columns());
  for (std::int64_t k = 0; k < weights.num_columns(); ++k) {
    const Lanes rounded = dequantize(quantized.codes[k], quantized.grids[static_cast<std::size_t>(k / group_size)]);
    for (std::int64_t r = 0; r < kTileRows; ++r) difference[k][r] = weights[k][r] - rounded[r];
  }
  return difference;
}

class GridDescent {
 public:
  GridDescent(const Tile& weights, const Hessian& hessian, std::int64_t group_size, const GridFormat& format,
              QuantizedTile& quantized)
      : hessian_(hessian),
        group_size_(group_size),
        max_code_(format.max_code()),
        quantized_(quantized),
        residual_(hessian, difference_to(weights, quantized, group_size)),
        levels_(group_size),
        steps_(group_size) {}

  void sweep() {
    residual_.sweep([&](std::int32_t column, const Lanes& best, Lanes& step) {
      return step_codes(quantized_.grids[static_cast<std::size_t>(column / group_size_)], best,
                        quantized_.codes[column], step);
    });
  }

  void refit_scales() {
    for (std::size_t g = 0; g < quantized_.grids.size(); ++g) {
      const std::int64_t first = static_cast<std::int64_t>(g) * group_size_;
      if (refit_scale(first, quantized_.grids[g])) residual_.move(first, group_size_, steps_);
    }
  }

 private:
  /// To the code that is nearest to the unconstrained minimum.
  bool step_codes(const GroupGrid& grid, const Lanes& best, Lanes& codes, Lanes& step) const {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the addition leaves no bits below the unit
    float any = 0;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const float zero = grid.zero[r];
      const float level = codes[r] - zero + best[r] / grid.scale[r];
      const float clamped = std::min(std::max(level, -zero), max_code_ - zero);
      const float code = (clamped + kMagic) - kMagic + zero;
      step[r] = (code - codes[r]) * grid.scale[r];
      any = std::max(any, std::abs(code - codes[r]));
      codes[r] = code;
    }
    return any > 0;
  }

  /// The scale of least error for the group's codes c: s + c·R / c^T H c. steps_ becomes the change of its columns.
  bool refit_scale(std::int64_t first, GroupGrid& grid) {
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) levels_[k][r] = quantized_.codes[first + k][r] - grid.zero[r];
    }
    multiply(hessian_.gram.block(first, group_size_).columns(first, group_size_), levels_.columns(0, group_size_),
             steps_.columns(0, group_size_));
    Lanes slope{};
    Lanes curvature{};
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        slope[r] += levels_[k][r] * residual_[first + k][r];
        curvature[r] += levels_[k][r] * (steps_[k][r] + hessian_.damping * levels_[k][r]);
      }
    }
    Lanes change;
    bool changed = false;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const float scale = better_scale(grid.scale[r], slope[r], curvature[r]);
      change[r] = scale - grid.scale[r];
      grid.scale[r] = scale;
      changed = changed || change[r] != 0;
    }
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) steps_[k][r] = change[r] * levels_[k][r];
    }
    return changed;
  }

  /// The old scale where the new one would change its sign or not lower the error after rounding to f16.
  static float better_scale(float scale, float slope, float curvature) {
    if (!(curvature > 0)) return scale;
    const float stored = to_float(to_half(scale + slope / curvature));
    const float change = stored - scale;
    const bool lowers = change * (change * curvature - 2 * slope) < 0;
    return lowers && stored * scale > 0 && std::abs(stored) <= kLargestHalf ? stored : scale;
  }

  const Hessian& hessian_;
  std::int64_t group_size_;
  float max_code_;
  QuantizedTile& quantized_;
  Residual residual_;
  Tile levels_;  // [group, rows] codes from the zero point
  Tile steps_;   // [group, rows] how far the group's weights move
};

}  // namespace

void descend(const Tile& weights, const Hessian& hessian, std::int64_t group_size, const GridFormat& format,
             const DescentSchedule& schedule, QuantizedTile& quantized) {
  GridDescent descent(weights, hessian, group_size, format, quantized);
  for (int i = 0; i < schedule.sweeps; ++i) descent.sweep();
  for (int round = 0; round < schedule.refit_rounds; ++round) {
    descent.refit_scales();
    for (int i = 0; i < schedule.sweeps; ++i) descent.sweep();
  }
}

}  // namespace nibble::quantize
