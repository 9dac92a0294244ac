#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cublas_lt.h"

namespace nibble::backend::cuda {

/// Dense parts as one matrix in the dtype of `format` (F16 or F32), its input format. Few tokens go through a kernel
/// that streams the weights once, more through cuBLASLt. `cublas` and `stream` outlive the linear.
/// Errors: Unsupported where a weight lies beyond f16's range; OutOfMemory.
std::unique_ptr<Linear> make_dense_linear(const std::vector<weights::LinearPart>& parts, ActivationKind format,
                                          const LinearSpec& spec, CublasLt& cublas, cudaStream_t stream);

}  // namespace nibble::backend::cuda
