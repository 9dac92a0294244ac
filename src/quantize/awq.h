#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/float_block.h"
#include "quantize/grid.h"
#include "quantize/quantizer.h"

/// AWQ (Lin et al. 2023, arXiv 2306.00978): input channels that matter are scaled up before rounding and their
/// producer is scaled down, so the model computes the same and rounds better.
namespace nibble::quantize {

/// The scale found for one stage.
struct ScaleSearch {
  std::vector<float> scale;   // one a channel of the fold producer; all 1 where nothing is better
  double identity_error = 0;  // Σ over the linears of tr(Δ G Δ^T), unscaled
  double best_error = 0;      // ≤ identity_error
};

/// Tries s = x^r / w^(1-r) for r from 0 to 1 (x: mean input magnitude, w: mean weight magnitude relative to its
/// group), and s = 1. The error is that of all linears' outputs, from the inputs' Gram matrix: no forward pass is
/// needed. `channels` as fold_channels gives them.
ScaleSearch search_scale(std::span<const FloatLinear> linears, const StageInputs& inputs,
                         std::span<const std::int32_t> channels, std::int64_t group_size, const GridFormat& format,
                         ThreadPool& pool);

}  // namespace nibble::quantize
