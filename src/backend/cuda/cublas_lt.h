#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>

#include "core/buffer.h"
#include "core/dtype.h"

namespace nibble::backend::cuda {

/// y[m, n] = x[m, k] w[n, k]^T, all row-major, sums in f32.
struct MatmulShape {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t y_stride = 0;  // elements from row to row of y
  DType input = DType::F16;   // of x and w
  DType output = DType::F16;  // of y
  auto operator<=>(const MatmulShape&) const = default;
};

/// cuBLASLt, which is 500 MB and dynamic only: opened when a backend is made, so that the plug-in itself loads without
/// it. Remembers which of its kernels suits each shape. One thread calls it.
class CublasLt {
 public:
  /// Errors: Unavailable where the library is not installed, saying where to get it.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  /// Enqueues the product. Errors: Internal with cuBLASLt's own words.
  void multiply(const MatmulShape& shape, const void* x, const void* w, void* y, cudaStream_t stream);

 private:
  struct Functions;
  struct Plan;

  const Plan& plan_of(const MatmulShape& shape);

  const Functions& functions_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<MatmulShape, Plan> plans_;
};

}  // namespace nibble::backend::cuda
