#pragma once

#include <cstdint>
#include <span>

#include "quantize/tile.h"

/// How the grid of a group is chosen, and rounding to it.
namespace nibble::quantize {

enum class Symmetry : std::uint8_t { Symmetric, Asymmetric };

struct GridFormat {
  std::int32_t bits = 4;
  Symmetry symmetry = Symmetry::Symmetric;

  float max_code() const { return static_cast<float>((1 << bits) - 1); }
  float middle() const { return static_cast<float>(1 << (bits - 1)); }
};

/// From the smallest to the largest weight, zero included: what RTN means by a grid.
GroupGrid fit_min_max(const Tile& weights, std::int64_t first_column, std::int64_t num_columns,
                      const GridFormat& format);

/// The grid of least Σ importance[k] (w_k - ŵ_k)² among shrunken min-max grids (GPTQ's and llm-compressor's MSE
/// search): both ends shrink on their own in the asymmetric form; in the symmetric one scales have either sign, so that
/// the side with one level more is the one that needs it (AutoRound's full-range grid). `importance` [num_columns] is
/// the diagonal of the inputs' Gram matrix.
GroupGrid fit_weighted(const Tile& weights, std::int64_t first_column, std::span<const float> importance,
                       const GridFormat& format);

/// The nearest code of each row; ties to the even multiple of the scale, as all peers round.
Lanes round_to_grid(const Lanes& weights, const GroupGrid& grid, const GridFormat& format);

/// scale * (code - zero)
Lanes dequantize(const Lanes& codes, const GroupGrid& grid);

}  // namespace nibble::quantize
