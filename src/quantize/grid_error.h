#pragma once

#include <cstdint>
#include <span>

#include "quantize/tile.h"

namespace nibble::quantize {

/// Σ_k importance[k] (w_k - ŵ_k)² of each row of a tile, over the columns from `first_column`, ŵ the nearest value of
/// `grid` with codes 0 … max_code. Grid searches spend their time here, so it is compiled for every SIMD target; the
/// bits are the same on all of them.
Lanes grid_error(const Tile& weights, std::int64_t first_column, std::span<const float> importance,
                 const GroupGrid& grid, float max_code);

}  // namespace nibble::quantize
