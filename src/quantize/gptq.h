#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/grid.h"
#include "quantize/tile.h"
#include "weights/linear_weights.h"

/// GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after another; what a rounding does to the
/// output is taken back, as well as possible, by the columns that follow.
namespace nibble::quantize {

/// In which order columns are rounded. Groups are runs of group_size input columns, their grids fitted to the original
/// weights (AutoGPTQ's static groups), except for GroupIndex.
enum class ColumnOrder : std::uint8_t {
  Natural,
  FallingDiagonal,  // what matters most first, while most columns can still absorb its error; no run-time cost
  GroupIndex,       // the same order, and groups are runs of columns in that order: needs g_idx
};

/// What the linears of one stage share: the inverse Hessian's factor and the order of columns.
struct GptqFactor {
  ColumnOrder column_order = ColumnOrder::Natural;
  std::vector<std::int32_t> order;  // [in] column that is rounded j-th
  std::vector<float> importance;    // [in] diagonal of the damped Hessian, in the natural order
  Tensor upper;                     // f32 [in, in] U with U^T U = H^-1, rows and columns in `order`
  double damp_percent = 0;          // what was needed
  float damping = 0;                // the same, as it was added to the diagonal
};

/// Factors H = gram + damping: `damp_percent` of the mean diagonal is added to the diagonal, more where H is still
/// singular. Columns that no token reaches (zero diagonal) stand alone and round to nearest.
/// Errors: Corrupt where no damping makes `gram` positive definite, which takes NaN (the caller adds the layer's name).
GptqFactor factorize(Matrix<const float> gram, ColumnOrder order, double damp_percent);

/// Importance of each input [in] for fit_weighted: the diagonal of `gram` plus `damp_percent` of its mean.
std::vector<float> damped_diagonal(Matrix<const float> gram, double damp_percent);

/// Rounds the columns of a tile in the factor's order; each spreads its error over those that follow. `weights` [in,
/// rows] lie in that order and are consumed. round(j, weights, rounded) chooses values for the j-th column.
void gptq_columns(Tile& weights, const GptqFactor& factor,
                  FunctionRef<void(std::int64_t position, const Lanes& weights, Lanes& rounded)> round);

/// One tile of `gptq`, below.
QuantizedTile gptq_tile(const Tile& weights, const GptqFactor& factor, std::int64_t group_size,
                        const GridFormat& format);

/// weight f32 [out, in], group_size divides in.
weights::GroupedIntWeights gptq(Matrix<const float> weight, const GptqFactor& factor, std::int64_t group_size,
                                const GridFormat& format, ThreadPool& pool);

}  // namespace nibble::quantize
