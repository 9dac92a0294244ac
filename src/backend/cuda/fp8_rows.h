#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/device_part.h"

/// What surrounds a product in FP8: activations to E4M3 before it, and scales after it where it ran without them.
namespace nibble::backend::cuda {

/// Rows of an activation in E4M3, as cuBLASLt reads them.
///
/// codes   e4m3 [num_rows, row_bytes]  zeros beyond the activation's width
/// scales  f32 [num_rows], or of runs of 128 inputs [ceil(width / 128), scale_stride]: row r at column r
struct Fp8Rows {
  void* codes = nullptr;
  std::int64_t row_bytes = 0;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;
};

/// Rounds rows [first_row, first_row + num_rows) of x (f32, f16 or bf16) as `format` says: Fp8PerToken, Fp8Static or
/// Fp8Per128, with the CPU's scales and its rounding, bit for bit. Rows of codes up to `num_written_rows` are written,
/// those past num_rows as zeros, for products that want rows in fours.
void quantize_fp8_rows(const Activation& x, std::int64_t first_row, std::int64_t num_rows,
                       std::int64_t num_written_rows, const ActivationFormat& format, const Fp8Rows& to,
                       cudaStream_t stream);

/// y[t, n] = sums[t, n] * row_scale[t] * column_scale[n], f32 products rounded once. Both scales may be null: 1.
///
/// sums  f32 [num_rows, sums_stride]
void scale_sums(const float* sums, std::int64_t sums_stride, const float* row_scale, const float* column_scale,
                std::int64_t num_rows, std::int64_t num_columns, const OutputColumns& y, cudaStream_t stream);

}  // namespace nibble::backend::cuda
