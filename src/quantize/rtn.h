#pragma once

#include "core/thread_pool.h"
#include "quantize/grid.h"
#include "weights/linear_weights.h"

namespace nibble::quantize {

/// Round to nearest on the min-max grid of each group. weight f32 [out, in]; group_size divides in.
weights::GroupedIntWeights round_to_nearest(Matrix<const float> weight, std::int64_t group_size,
                                            const GridFormat& format, ThreadPool& pool);

/// Round to nearest on grids fitted with the inputs' importance [in] (fit_weighted).
weights::GroupedIntWeights round_to_weighted_grid(Matrix<const float> weight, std::span<const float> importance,
                                                  std::int64_t group_size, const GridFormat& format, ThreadPool& pool);

}  // namespace nibble::quantize
