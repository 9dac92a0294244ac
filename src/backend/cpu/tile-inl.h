// Per-target vocabulary of tiles; included once for each SIMD target (no include guard of the usual kind).
#if defined(NIBBLE_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_CPU_TILE_INL_H_
#undef NIBBLE_CPU_TILE_INL_H_
#else
#define NIBBLE_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "backend/cpu/layout.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, kTileRows>;
using VF = hn::Vec<F32>;
/// Vectors that make up the 16 rows of a tile: 1 (AVX-512), 2 (AVX2) or 4.
inline constexpr int kParts = static_cast<int>(kTileRows / static_cast<std::int64_t>(hn::MaxLanes(F32())));
inline constexpr int kLanes = static_cast<int>(kTileRows) / kParts;

HWY_INLINE VF load_float(const float* from) {
  return hn::LoadU(F32(), from);
}
HWY_INLINE VF load_float(const hwy::float16_t* from) {
  const hn::Rebind<hwy::float16_t, F32> half;
  return hn::PromoteTo(F32(), hn::LoadU(half, from));
}
HWY_INLINE VF load_float(const hwy::bfloat16_t* from) {
  const hn::Rebind<hwy::bfloat16_t, F32> half;
  return hn::PromoteTo(F32(), hn::LoadU(half, from));
}

/// Sign, exponent and mantissa of E4M3 codes in f16's places. The exponents' biases differ by 8, so the number is
/// 2^-8 of the code's (kFp8CodeScale); subnormals come out right. Codes are no NaNs.
template <class D16>
HWY_INLINE hn::Vec<D16> fp8_as_half_bits(D16 d, const Fp8E4M3* from) {
  const hn::Rebind<std::int8_t, D16> d8;
  // Sign extension puts copies of the sign in bits 14 and 15; the exponent's highest bit is none.
  const auto wide = hn::PromoteTo(d, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(from)));
  return hn::And(hn::ShiftLeft<7>(wide), hn::Set(d, static_cast<std::int16_t>(0xbfff)));
}
/// What happens to the sums of a row before they are stored.
struct Epilogue {
  std::span<const float> scales;  // [num_tiles * 16] multiplied in; empty: none
  std::span<const float> bias;    // [out_features] added; empty: none
};

/// Writes a tile's 16 sums for one token, plus bias, where the tile may be the last and narrower one.
HWY_INLINE void store_tile_rows(const VF (&sums)[kParts], std::int64_t first_row, std::int64_t out_features,
                                std::span<const float> bias, float* y_row) {
  const F32 d;
  const std::int64_t count = std::min(kTileRows, out_features - first_row);
  HWY_ALIGN float padded[kTileRows];
  if (count == kTileRows) {
    for (int p = 0; p < kParts; ++p) {
      const VF sum = bias.empty() ? sums[p] : hn::Add(sums[p], hn::LoadU(d, &bias[0] + first_row + p * kLanes));
      hn::StoreU(sum, d, y_row + first_row + p * kLanes);
    }
    return;
  }
  for (int p = 0; p < kParts; ++p) hn::Store(sums[p], d, padded + p * kLanes);
  for (std::int64_t r = 0; r < count; ++r) {
    y_row[first_row + r] = padded[r] + (bias.empty() ? 0.0f : bias[static_cast<std::size_t>(first_row + r)]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
