#pragma once

#include <memory>

#include "backend/backend.h"

namespace nibble::backend {

/// Host SIMD through Highway, chosen at run time. Precision::Fast takes 15-bit integer activations per group for
/// integer weights and holds a dense lm_head at 8 bits; Precision::Exact computes everything in f32. Results do not
/// depend on the number of threads nor on what else is in a batch, bit for bit.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace nibble::backend
