#pragma once

#include <memory>

#include "backend/cpu/packed_part.h"

namespace nibble::backend::cpu {

/// Tiles of the codes as they are, with their scales beside them; nothing where a block's side is no multiple of a
/// tile's rows. The bias is copied.
std::unique_ptr<PackedPart> pack_fp8(const weights::Fp8Weights& weights, const Tensor& bias, Fp8Activations activations,
                                     ThreadPool& pool);

}  // namespace nibble::backend::cpu
