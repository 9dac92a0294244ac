#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cublas_lt.h"
#include "backend/cuda/fp8_matmul.h"
#include "backend/cuda/scratch.h"

namespace nibble::backend::cuda {

/// What the linears of a backend share; all of it outlives them.
struct LinearContext {
  ActivationKind format = ActivationKind::F16;  // of inputs: F16 or F32
  Fp8Activations fp8_activations = Fp8Activations::Auto;
  CublasLt& cublas;
  Fp8Matmul& fp8;
  Scratch& scratch;  // of dequantized weights
  cudaStream_t stream = nullptr;
};

/// A linear of any canonical parts. Few tokens go through kernels that read the parts' weights once. More go through
/// cuBLASLt: FP8 parts with inputs rounded to E4M3 (docs/decisions/0017), other quantized parts dequantized into
/// scratch. Errors: Unsupported and OutOfMemory, naming the linear.
std::unique_ptr<Linear> make_cuda_linear(const std::vector<weights::LinearPart>& parts, const LinearSpec& spec,
                                         const LinearContext& context);

}  // namespace nibble::backend::cuda
