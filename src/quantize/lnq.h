#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/codebook.h"
#include "quantize/gptq.h"

/// LNQ, layer-wise non-uniform quantization (GuidedQuant, arXiv 2505.07004, section 4): codes by GPTQ and coordinate
/// descent, tables by least squares, in turns, all under one quadratic form.
namespace nibble::quantize {

struct LnqSchedule {
  int rounds = 3;  // of fitting the tables to the codes, then sweeps over the codes
  int sweeps = 4;
};

/// Lowers Σ_rows (w - q)^T H (w - q) over tables and codes, H = gram plus the factor's damping.
/// dense    f32 [out, in]           zero at the sparse positions, which are exact and out of every sum
/// gram     f32 [in, in]            what `factor` comes from, columns by falling diagonal
/// tables   f16 [out, 2^bits]       where to start; entries that no weight uses stay
/// Returns the codes, u8 [out, in]; what stands at the sparse positions means nothing.
Tensor refine_codebook(Matrix<const float> dense, const SparsePositions& sparse, Matrix<const float> gram,
                       const GptqFactor& factor, const LnqSchedule& schedule, Tensor& tables, ThreadPool& pool);

}  // namespace nibble::quantize
