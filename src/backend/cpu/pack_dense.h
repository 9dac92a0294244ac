#pragma once

#include <memory>

#include "backend/cpu/packed_part.h"

namespace nibble::backend::cpu {

/// Tiles of the weights in their own dtype. The bias is copied.
std::unique_ptr<PackedPart> pack_dense(const weights::DenseWeights& weights, const Tensor& bias, ThreadPool& pool);

}  // namespace nibble::backend::cpu
