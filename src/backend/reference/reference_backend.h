#pragma once

#include <memory>

#include "backend/backend.h"

namespace nibble::backend {

/// Naive f32 operations without SIMD or blocking: the exact mode, the oracle of every kernel test, and the proof that
/// `Backend` has no CPU habits. Never optimised beyond what keeps tests bearable.
std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);

}  // namespace nibble::backend
