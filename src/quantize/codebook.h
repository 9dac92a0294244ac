#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "weights/linear_weights.h"

/// The pieces that methods for CodebookWeights share: which weights are stored apart, a table for each output row,
/// codes of the nearest entries, and the struct they make (SqueezeLLM, arXiv 2306.07629).
namespace nibble::quantize {

/// Weights of one linear that are stored apart, exact, and count as 0 in the dense part: CSR without values.
struct SparsePositions {
  std::vector<std::int32_t> rows;  // [out + 1]
  std::vector<std::int32_t> cols;  // ascending within a row

  std::span<const std::int32_t> row(std::int64_t o) const;
};

/// Of all weights the share that counts as sensitive, the rest of `sparsity` being outliers (section 4.2).
inline constexpr double kSensitiveShare = 0.0005;

/// A share `sparsity` of the positions: first, up to kSensitiveShare, the most sensitive ones (equal sensitivities,
/// which a diagonal shared by all rows has, by magnitude), then the largest magnitudes among the others. Never a weight
/// of 0, nor one without any sensitivity as a sensitive one. weight, sensitivity [out, in]; a sensitivity of row stride
/// 0 is one for all rows.
SparsePositions select_sparse(Matrix<const float> weight, Matrix<const float> sensitivity, double sparsity);

/// A copy [out, in] with zeros at the sparse positions.
Tensor without_sparse(Matrix<const float> matrix, const SparsePositions& sparse);

/// f16 [out, 2^bits]: the exact k-means of each row's weights under `importance`, both [out, in]. Where a row's
/// importances are all zero its weights count the same.
Tensor fit_tables(Matrix<const float> weight, Matrix<const float> importance, std::int32_t bits, ThreadPool& pool);

/// u8 [out, in]: the entry of the row's table (f16) nearest to each weight, the first of equals.
Tensor nearest_codes(Matrix<const float> weight, const Tensor& tables, ThreadPool& pool);

/// Sparse positions get the code of the entry nearest to zero, and what that entry lacks as their sparse value, which
/// restores `weight` [out, in] there. `codes` u8 [out, in], `tables` f16 [out, 2^bits].
weights::CodebookWeights assemble_codebook(Matrix<const float> weight, Tensor tables, const Tensor& codes,
                                           const SparsePositions& sparse);

}  // namespace nibble::quantize
