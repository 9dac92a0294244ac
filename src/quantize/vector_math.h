#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

/// Loops over rows of f32 that compilers vectorize without leave to reorder sums: sixteen partial results, taken
/// together in one order.

namespace nibble::quantize {

/// e^x within two units in the last place, for loops that compilers vectorize (std::exp is a call). Below -87 the
/// result is e^-87, about 1e-38.
inline float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float clamped = std::min(std::max(x, -87.0f), 88.0f);
  const float shifted = clamped * kLog2E + kRound;
  const float whole = shifted - kRound;
  const float rest = (clamped - whole * kLn2High) - whole * kLn2Low;
  // Cephes' expf: minimax polynomial of degree 5 on [-ln2/2, ln2/2].
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  const float mantissa = p * rest * rest + rest + 1.0f;
  // The low bits of `shifted` hold the whole number: into the exponent with it.
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u;
  return mantissa * std::bit_cast<float>(exponent);
}

/// Σ term(k), k < size.
template <class Term>
float sum_terms(std::size_t size, const Term& term) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> partial{};
  std::size_t k = 0;
  for (; k + kLanes <= size; k += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) partial[lane] += term(k + lane);
  }
  for (std::size_t lane = 0; k < size; ++k, ++lane) partial[lane] += term(k);
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
  }
  return partial[0];
}

inline float sum_of(std::span<const float> x) {
  return sum_terms(x.size(), [&](std::size_t k) { return x[k]; });
}

inline float dot(std::span<const float> x, std::span<const float> y) {
  return sum_terms(x.size(), [&](std::size_t k) { return x[k] * y[k]; });
}

/// The largest of at least one; NaN may be passed over.
inline float max_of(std::span<const float> x) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> partial;
  partial.fill(x.front());
  std::size_t k = 0;
  for (; k + kLanes <= x.size(); k += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) partial[lane] = std::max(partial[lane], x[k + lane]);
  }
  for (; k < x.size(); ++k) partial[0] = std::max(partial[0], x[k]);
  return *std::ranges::max_element(partial);
}

}  // namespace nibble::quantize
