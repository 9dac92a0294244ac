#include "quantize/grid.h"

#include <algorithm>
#include <limits>

#include "core/dtype.h"
#include "quantize/grid_error.h"

namespace nibble::quantize {
namespace {

// Asymmetric: both ends from 1 down to 0.56 of the extremes. Symmetric: one factor, from 1 down to 0.34, finer because
// it is a single one. Wider or finer grids gain nothing at 3 and 4 bits, wider ones do at 2.
constexpr int kAsymmetricSteps = 12;
constexpr int kAsymmetricSteps2Bits = 16;
constexpr float kAsymmetricStep = 0.04f;
constexpr int kSymmetricSteps = 45;
constexpr float kSymmetricStep = 0.015f;

/// Half to even for |x| < 2^22: the addition leaves no bits below the unit.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

/// A group of zeros, or of weights below f16's range, gets the smallest normal scale: every code is the zero point.
inline float storable_scale(float scale) {
  const float stored = to_float(to_half(scale));
  return stored > 0 ? stored : 0x1p-14f;
}

/// Clamping first gives the same code, as the ends are integers, and keeps round_even in its range.
inline float nearest_code(float scaled, float zero, float max_code) {
  return round_even(std::clamp(scaled, -zero, max_code - zero)) + zero;
}

struct Extremes {
  Lanes low;   // ≤ 0
  Lanes high;  // ≥ 0
};

Extremes find_extremes(const Tile& weights, std::int64_t first, std::int64_t count) {
  Extremes extremes{};
  for (std::int64_t k = first; k < first + count; ++k) {
    const Lanes& w = weights[k];
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      extremes.low[r] = std::min(extremes.low[r], w[r]);
      extremes.high[r] = std::max(extremes.high[r], w[r]);
    }
  }
  return extremes;
}

GroupGrid asymmetric_grid(const Extremes& extremes, float shrink_low, float shrink_high, float max_code) {
  GroupGrid grid;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const float low = extremes.low[r] * shrink_low;
    grid.scale[r] = storable_scale((extremes.high[r] * shrink_high - low) / max_code);
    grid.zero[r] = round_even(std::clamp(-low / grid.scale[r], 0.0f, max_code));
  }
  return grid;
}

/// A negative `sign` turns the grid round: its code 0, a step further out than the largest, lies on the other side.
GroupGrid symmetric_grid(const Extremes& extremes, float shrink, float sign, const GridFormat& format) {
  GroupGrid grid;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const float largest = std::max(-extremes.low[r], extremes.high[r]);
    grid.scale[r] = sign * storable_scale(2 * largest * shrink / format.max_code());
    grid.zero[r] = format.middle();
  }
  return grid;
}

/// Keeps, for each row, the better grid of those it is shown; the first of equals.
class BestGrid {
 public:
  BestGrid() { error_.values.fill(std::numeric_limits<float>::infinity()); }
  void offer(const GroupGrid& grid, const Lanes& error) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const bool better = error[r] < error_[r];
      grid_.scale[r] = better ? grid.scale[r] : grid_.scale[r];
      grid_.zero[r] = better ? grid.zero[r] : grid_.zero[r];
      error_[r] = better ? error[r] : error_[r];
    }
  }
  const GroupGrid& grid() const { return grid_; }

 private:
  GroupGrid grid_{};
  Lanes error_;
};

}  // namespace

GroupGrid fit_min_max(const Tile& weights, std::int64_t first_column, std::int64_t num_columns,
                      const GridFormat& format) {
  const Extremes extremes = find_extremes(weights, first_column, num_columns);
  if (format.symmetry == Symmetry::Symmetric) return symmetric_grid(extremes, 1, 1, format);
  return asymmetric_grid(extremes, 1, 1, format.max_code());
}

GroupGrid fit_weighted(const Tile& weights, std::int64_t first_column, std::span<const float> importance,
                       const GridFormat& format) {
  const Extremes extremes = find_extremes(weights, first_column, static_cast<std::int64_t>(importance.size()));
  BestGrid best;
  const auto offer = [&](const GroupGrid& grid) {
    best.offer(grid, grid_error(weights, first_column, importance, grid, format.max_code()));
  };
  if (format.symmetry == Symmetry::Symmetric) {
    for (int i = 0; i < kSymmetricSteps; ++i) {
      const float shrink = 1 - kSymmetricStep * static_cast<float>(i);
      offer(symmetric_grid(extremes, shrink, 1, format));
      offer(symmetric_grid(extremes, shrink, -1, format));
    }
    return best.grid();
  }
  const int steps = format.bits == 2 ? kAsymmetricSteps2Bits : kAsymmetricSteps;
  for (int i = 0; i < steps; ++i) {
    for (int j = 0; j < steps; ++j) {
      offer(asymmetric_grid(extremes, 1 - kAsymmetricStep * static_cast<float>(i),
                            1 - kAsymmetricStep * static_cast<float>(j), format.max_code()));
    }
  }
  return best.grid();
}

Lanes round_to_grid(const Lanes& weights, const GroupGrid& grid, const GridFormat& format) {
  Lanes codes;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    codes[r] = nearest_code(weights[r] / grid.scale[r], grid.zero[r], format.max_code());
  }
  return codes;
}

Lanes dequantize(const Lanes& codes, const GroupGrid& grid) {
  Lanes values;
  for (std::int64_t r = 0; r < kTileRows; ++r) values[r] = grid.scale[r] * (codes[r] - grid.zero[r]);
  return values;
}

}  // namespace nibble::quantize
