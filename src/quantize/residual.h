#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/tile.h"

namespace nibble::quantize {

/// The quadratic form that rows are quantized under: H = gram + damping * I.
struct Hessian {
  Matrix<const float> gram;         // [in, in] symmetric
  float damping = 0;                // > 0
  std::vector<std::int32_t> order;  // [in] columns as a sweep visits them: by falling diagonal
};

/// R = H (w - q) of a tile of rows while their quantized weights q move to lower (w - q)^T H (w - q): the step that
/// minimizes it in one coordinate is R_j / H_jj.
class Residual {
 public:
  /// difference [in, rows]: w - q. `hessian` outlives the residual.
  Residual(const Hessian& hessian, const Tile& difference);

  const Lanes& operator[](std::int64_t column) const { return residual_[column]; }

  /// Visits all columns in the Hessian's order. choose(column, best, step) is given the best steps of the rows and
  /// writes those that are taken, zero included; it returns whether any is not zero.
  void sweep(FunctionRef<bool(std::int32_t column, const Lanes& best, Lanes& step)> choose);

  /// Columns [first, first + count) have moved by steps [count, rows].
  void move(std::int64_t first, std::int64_t count, const Tile& steps);

 private:
  bool step_columns(std::span<const std::int32_t> columns,
                    FunctionRef<bool(std::int32_t, const Lanes&, Lanes&)> choose);

  const Hessian& hessian_;
  Tile residual_;             // [in, rows]
  Tile steps_;                // of a block of columns
  Tile local_;                // the residual of a block's columns while they move
  std::vector<float> panel_;  // [block, in] rows of the Gram matrix
};

}  // namespace nibble::quantize
