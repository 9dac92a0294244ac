#include "quantize/descent.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>

#include "core/dtype.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

// Inside a block of columns the residual is updated column by column, beyond it by one matrix product.
constexpr std::int64_t kColumnBlock = 64;

class TileDescent {
 public:
  TileDescent(const Tile& weights, const Hessian& hessian, std::int64_t group_size, const GridFormat& format,
              QuantizedTile& quantized)
      : hessian_(hessian),
        group_size_(group_size),
        max_code_(format.max_code()),
        quantized_(quantized),
        residual_(weights.num_columns()),
        steps_(std::max(kColumnBlock, group_size)),
        panel_(static_cast<std::size_t>(kColumnBlock * weights.num_columns())) {
    start_residual(weights);
  }

  void sweep() {
    const auto in_features = static_cast<std::int64_t>(hessian_.order.size());
    for (std::int64_t first = 0; first < in_features; first += kColumnBlock) {
      const std::int64_t count = std::min(kColumnBlock, in_features - first);
      const std::span<const std::int32_t> columns(hessian_.order.data() + first, static_cast<std::size_t>(count));
      if (!step_columns(columns)) continue;
      for (std::size_t i = 0; i < columns.size(); ++i) {
        std::copy_n(hessian_.gram.row(columns[i]), in_features,
                    panel_.data() + static_cast<std::int64_t>(i) * in_features);
      }
      subtract_steps({panel_.data(), count, in_features, in_features}, columns);
    }
  }

  void refit_scales() {
    std::vector<std::int32_t> columns(static_cast<std::size_t>(group_size_));
    for (std::size_t g = 0; g < quantized_.grids.size(); ++g) {
      const std::int64_t first = static_cast<std::int64_t>(g) * group_size_;
      if (!refit_scale(first, quantized_.grids[g])) continue;
      for (std::size_t i = 0; i < columns.size(); ++i)
        columns[i] = static_cast<std::int32_t>(first) + static_cast<std::int32_t>(i);
      subtract_steps(hessian_.gram.block(first, group_size_), columns);
    }
  }

 private:
  /// R = H (w - q), in tiles as [in, rows].
  void start_residual(const Tile& weights) {
    const std::int64_t in_features = weights.num_columns();
    Tile difference(in_features);
    for (std::int64_t k = 0; k < in_features; ++k) {
      const Lanes rounded = dequantize(quantized_.codes[k], grid_of(k));
      for (std::int64_t r = 0; r < kTileRows; ++r) difference[k][r] = weights[k][r] - rounded[r];
    }
    multiply(hessian_.gram, difference.columns(0, in_features), residual_.columns(0, in_features));
    for (std::int64_t k = 0; k < in_features; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) residual_[k][r] += hessian_.damping * difference[k][r];
    }
  }

  /// Moves each column of a block to its best code, given all others. steps_[i] becomes the change of columns[i].
  /// Returns whether any code changed.
  bool step_columns(std::span<const std::int32_t> columns) {
    for (std::size_t i = 0; i < columns.size(); ++i) local_[i] = residual_[columns[i]];
    bool changed = false;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const float* row = hessian_.gram.row(columns[i]);
      Lanes& step = steps_[static_cast<std::int64_t>(i)];
      if (!step_column(columns[i], local_[i], 1 / (row[columns[i]] + hessian_.damping), step)) continue;
      changed = true;
      for (std::size_t j = i + 1; j < columns.size(); ++j) {
        const float coupling = row[columns[j]];
        for (std::int64_t r = 0; r < kTileRows; ++r) local_[j][r] -= coupling * step[r];
      }
    }
    return changed;
  }

  bool step_column(std::int64_t column, const Lanes& residual, float inverse_diagonal, Lanes& step) {
    const GroupGrid& grid = grid_of(column);
    Lanes& codes = quantized_.codes[column];
    Lanes moved;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      // In units of the scale; the code that is nearest to the unconstrained minimum.
      moved[r] = codes[r] - grid.zero[r] + residual[r] * inverse_diagonal / grid.scale[r];
    }
    moved = round_levels(moved, grid);
    float any = 0;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const float change = moved[r] - codes[r];
      any = std::max(any, std::abs(change));
      step[r] = change * grid.scale[r];
    }
    codes = moved;
    return any > 0;
  }

  /// The nearest code to a level counted from the zero point.
  Lanes round_levels(const Lanes& levels, const GroupGrid& grid) const {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the addition leaves no bits below the unit
    Lanes codes;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const float clamped = std::min(std::max(levels[r], -grid.zero[r]), max_code_ - grid.zero[r]);
      codes[r] = (clamped + kMagic) - kMagic + grid.zero[r];
    }
    return codes;
  }

  /// The scale of least error for the group's codes c: s + c·R / c^T H c. steps_ becomes the change of its columns.
  bool refit_scale(std::int64_t first, GroupGrid& grid) {
    Tile levels(group_size_);
    Tile product(group_size_);
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) levels[k][r] = quantized_.codes[first + k][r] - grid.zero[r];
    }
    multiply(hessian_.gram.block(first, group_size_).columns(first, group_size_), levels.columns(0, group_size_),
             product.columns(0, group_size_));
    Lanes slope{};
    Lanes curvature{};
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        slope[r] += levels[k][r] * residual_[first + k][r];
        curvature[r] += levels[k][r] * (product[k][r] + hessian_.damping * levels[k][r]);
      }
    }
    Lanes change;
    bool changed = false;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      change[r] = better_scale(grid.scale[r], slope[r], curvature[r]) - grid.scale[r];
      grid.scale[r] += change[r];
      changed = changed || change[r] != 0;
    }
    for (std::int64_t k = 0; k < group_size_; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) steps_[k][r] = change[r] * levels[k][r];
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

  /// R -= H[:, columns] steps.   rows [columns, in]: those rows of the Gram matrix
  void subtract_steps(Matrix<const float> rows, std::span<const std::int32_t> columns) {
    subtract_product(rows, steps_.columns(0, rows.rows), residual_.columns(0, rows.cols));
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const Lanes& step = steps_[static_cast<std::int64_t>(i)];
      for (std::int64_t r = 0; r < kTileRows; ++r) residual_[columns[i]][r] -= hessian_.damping * step[r];
    }
  }

  const GroupGrid& grid_of(std::int64_t column) const {
    return quantized_.grids[static_cast<std::size_t>(column / group_size_)];
  }

  static constexpr float kLargestHalf = 65504.0f;

  const Hessian& hessian_;
  std::int64_t group_size_;
  float max_code_;
  QuantizedTile& quantized_;
  Tile residual_;                          // R [in, rows]
  Tile steps_;                             // [columns of a block or a group, rows]: how far they moved
  std::array<Lanes, kColumnBlock> local_;  // the residual of a block's columns while they move
  std::vector<float> panel_;               // [block, in] rows of the Gram matrix
};

}  // namespace

void descend(const Tile& weights, const Hessian& hessian, std::int64_t group_size, const GridFormat& format,
             const DescentSchedule& schedule, QuantizedTile& quantized) {
  TileDescent descent(weights, hessian, group_size, format, quantized);
  for (int i = 0; i < schedule.sweeps; ++i) descent.sweep();
  for (int round = 0; round < schedule.refit_rounds; ++round) {
    descent.refit_scales();
    for (int i = 0; i < schedule.sweeps; ++i) descent.sweep();
  }
}

}  // namespace nibble::quantize
