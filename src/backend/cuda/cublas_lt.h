#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>

#include "core/buffer.h"
#include "core/dtype.h"

namespace nibble::backend::cuda {

/// What multiplies the sums of E4M3 products. Layouts are cuBLASLt's own ("scaling factors layouts").
enum class Fp8Scaling : std::uint8_t {
  None,    // nothing: the sums of the codes' products
  Tensor,  // one number for w and one for x
  Vector,  // w f32 [n], x f32 [m]
  Block,   // w f32 [ceil(n / 128), ceil(k / 128) in whole fours], x f32 [ceil(k / 128), m]; m is a multiple of 4
};

/// On the device.
struct Fp8Scales {
  const float* w = nullptr;
  const float* x = nullptr;
};

/// y[m, n] = x[m, k] w[n, k]^T, all row-major, sums in f32. E4M3 wants k in whole 16, and rows of y that begin and
/// end at 16 bytes.
struct MatmulShape {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t y_stride = 0;  // elements from row to row of y
  DType input = DType::F16;   // of x and w
  DType output = DType::F16;  // of y
  Fp8Scaling scaling = Fp8Scaling::None;
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

  /// Enqueues the product. The first of a shape takes the host some 100 µs and may load a kernel, which no stream that
  /// is being captured allows: run a step once before it is captured. Errors: Internal with cuBLASLt's own words.
  void multiply(const MatmulShape& shape, const void* x, const void* w, void* y, cudaStream_t stream,
                const Fp8Scales& scales = {});

 private:
  struct Functions;
  struct Plan;

  Plan& plan_of(const MatmulShape& shape, const Fp8Scales& scales);

  const Functions& functions_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<MatmulShape, Plan> plans_;
};

}  // namespace nibble::backend::cuda
