#pragma once

#include <cstdint>

#include "quantize/grid.h"
#include "quantize/residual.h"
#include "quantize/tile.h"

/// Coordinate descent on codes and scales: what GPTQ leaves undone, because it never looks back at a column.
namespace nibble::quantize {

struct DescentSchedule {
  int sweeps = 4;        // over all columns, before the first refit and after each
  int refit_rounds = 4;  // each fits every group's scale to its codes, then sweeps
};

/// Lowers tr((W - Q) H (W - Q)^T) of a tile from where `quantized` stands; no step raises it but for rounding. Groups
/// are runs of `group_size` columns, zero points stay. A scale keeps its sign and is rounded to f16.
void descend(const Tile& weights, const Hessian& hessian, std::int64_t group_size, const GridFormat& format,
             const DescentSchedule& schedule, QuantizedTile& quantized);

}  // namespace nibble::quantize
