#pragma once

#include <memory>

#include "backend/cpu/packed_part.h"

namespace nibble::backend::cpu {

/// Largest number of inputs that share one activation scale.
inline constexpr std::int64_t kMaxActivationGroup = 128;

/// Tiles of codes; columns sorted by group where g_idx scatters them (the part then states a permutation). The integer
/// kernels want groups that begin and end at multiples of 32 inputs; where they do not, or with Precision::Exact, the
/// part takes f32 activations. The bias is copied.
std::unique_ptr<PackedPart> pack_grouped_int(const weights::GroupedIntWeights& weights, const Tensor& bias,
                                             Precision precision, ThreadPool& pool);

}  // namespace nibble::backend::cpu
