#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/tensor.h"

/// Inputs of warpgroup products with packed weights (packed_layout.h): B is read in the order in which a product counts
/// k, so inputs are brought into it first.
namespace nibble::backend::cuda {

struct InputShape {
  std::int64_t num_tokens = 0;
  std::int64_t num_cols = 0;
  std::int64_t width = 0;  // packed columns, a multiple of 128
};

/// to[t, k] = x[t, column that packed weights have at k], 0 where they have none; f16.
///
/// x        [num_tokens, num_cols]
/// columns  i32 [width] as in ColumnPlan, or empty for the natural order
/// to       [num_tokens, width]
void arrange_inputs(const void* x, const Tensor& columns, const InputShape& shape, void* to, cudaStream_t stream);

/// The map of an f16 matrix [num_tokens, width] for copies of boxes of `box_cols` (64) × `box_tokens`, swizzled by 128
/// bytes. Errors: Internal.
CUtensorMap map_inputs(const void* x, std::int64_t num_tokens, std::int64_t width, int box_cols, int box_tokens);

}  // namespace nibble::backend::cuda
