#pragma once

#include <memory>

#include "backend/cpu/packed_part.h"

namespace nibble::backend::cpu {

/// Codes of 3 bits take 3.2: a word holds ten. Activations stay f32 in either precision.
std::unique_ptr<PackedPart> pack_codebook(const weights::CodebookWeights& weights, const Tensor& bias,
                                          ThreadPool& pool);

}  // namespace nibble::backend::cpu
