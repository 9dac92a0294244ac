#pragma once

#include <memory>

#include "backend/backend.h"

namespace nibble::backend::cuda {

/// The current device. Activations are f16 (Precision::Fast) or f32 (Exact) throughout; operations are enqueued on one
/// stream, and `collect` and `read` wait for it. FP8 weights are
/// dequantized, their activations stay float.
/// Errors: Unavailable where a library is missing; OutOfMemory.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace nibble::backend::cuda
