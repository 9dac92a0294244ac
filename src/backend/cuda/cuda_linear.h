#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cublas_lt.h"

namespace nibble::backend::cuda {

/// Device memory that linears of a backend share, one product after the other; as large as any of them needs.
class Scratch {
 public:
  void reserve(std::size_t size_bytes);
  void* data() { return buffer_.data(); }

 private:
  Buffer buffer_;
};

/// A linear of any canonical parts for inputs in `format` (F16 or F32). Few tokens go through kernels that read the
/// parts' weights once, more through cuBLASLt, for which quantized parts are dequantized into scratch. `cublas`,
/// `scratch` and `stream` outlive the linear. Errors: Unsupported and OutOfMemory, naming the linear.
std::unique_ptr<Linear> make_cuda_linear(const std::vector<weights::LinearPart>& parts, ActivationKind format,
                                         const LinearSpec& spec, CublasLt& cublas, Scratch& scratch,
                                         cudaStream_t stream);

}  // namespace nibble::backend::cuda
