#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace nibble::backend::cuda {

/// hidden += delta (where given); out = rms_norm(hidden) * weight, enqueued on `stream`. Sums are f32; hidden is
/// rounded to its dtype before the norm reads it, as transformers does.
///
/// hidden, delta  [num_tokens, width]  f32, f16 or bf16, both the same
/// weight         f32 [width]
/// out            [num_tokens, width]  f32, f16 or bf16; its num_tokens is set
///
/// Errors: Unsupported for another format of out or an input_permutation.
void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out,
          cudaStream_t stream);

}  // namespace nibble::backend::cuda
