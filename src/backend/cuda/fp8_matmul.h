#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/cublas_lt.h"
#include "backend/cuda/device_part.h"
#include "backend/cuda/fp8_rows.h"
#include "backend/cuda/scratch.h"

namespace nibble::backend::cuda {

/// Products of FP8 weights with inputs that it rounds to E4M3 itself (docs/decisions/0017). One thread calls it.
class Fp8Matmul {
 public:
  /// `cublas` outlives it.
  explicit Fp8Matmul(CublasLt& cublas);

  /// Whether the current device multiplies E4M3 with every way of scaling: Hopper.
  bool is_supported() const { return is_supported_; }

  /// Makes room for products of up to `max_tokens` tokens with `w`, which then allocate nothing. Errors: OutOfMemory.
  void reserve(const Fp8Operand& w, std::int64_t max_tokens);

  /// y = W round(x), rounded as `format` says (Fp8PerToken, Fp8Static, Fp8Per128). x is f32 or f16. Rows of y beyond
  /// x.num_tokens, up to `y_capacity`, may be overwritten.
  void multiply(const Fp8Operand& w, const Activation& x, const ActivationFormat& format, const OutputColumns& y,
                std::int64_t y_capacity, cudaStream_t stream);

 private:
  /// Rows [first, first + num_rows) of x, `num_written` with the zeros below them.
  Fp8Rows quantize(const Fp8Operand& w, const Activation& x, std::int64_t first, std::int64_t num_rows,
                   std::int64_t num_written, const ActivationFormat& format, cudaStream_t stream);
  void multiply_whole(const Fp8Operand& w, const Activation& x, const ActivationFormat& format, const OutputColumns& y,
                      cudaStream_t stream);
  void multiply_by_sums(const Fp8Operand& w, const Activation& x, std::int64_t first, const ActivationFormat& format,
                        const OutputColumns& y, cudaStream_t stream);

  CublasLt& cublas_;
  bool is_supported_ = false;
  Scratch codes_;   // e4m3 [max_tokens, row_bytes]
  Scratch scales_;  // f32, as Fp8Rows has them
  Scratch sums_;    // f32 [kMaxSummedTokens, out_features in whole fours]
};

}  // namespace nibble::backend::cuda
