#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"

/// E4M3's encoding as a few integer operations without branches, for loops that the compiler vectorizes; `to_fp8_e4m3`
/// is the same function behind a call.
namespace nibble {

/// Round half to even after clamping to ±448; NaN stays NaN.
inline std::uint8_t fp8_e4m3_bits(float x) {
  constexpr std::uint32_t kLargest = 0x43e00000u;         // 448
  constexpr std::uint32_t kSmallestNormal = 0x3c800000u;  // 2^-6
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t unclamped = bits & 0x7fffffffu;
  const std::uint32_t magnitude = unclamped < kLargest ? unclamped : kLargest;
  // Normal: rebias the exponent from 127 to 7 and round the mantissa from 23 bits to 3; a carry raises the exponent.
  const std::uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Subnormal, multiples of 2^-9: adding 2^14 aligns the last kept bit with float's last bit, so the FPU rounds to
  // even.
  const float aligned = std::bit_cast<float>(magnitude < kSmallestNormal ? magnitude : 0u) + 0x1p14f;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(aligned) - 0x46800000u;
  const std::uint32_t finite = magnitude < kSmallestNormal ? subnormal : normal;
  return static_cast<std::uint8_t>(sign | (unclamped > 0x7f800000u ? 0x7fu : finite));
}

}  // namespace nibble
