#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble::verify {

/// Eight codes share a word, and AutoAWQ puts column kAwqOrder[i] at nibble i where all others put column i.
inline constexpr std::int64_t kInterleaved = 8;
inline constexpr std::array<std::int64_t, 8> kAwqOrder{0, 2, 4, 6, 1, 3, 5, 7};

/// Where index `i` stands when its block of eight is put in AWQ's order, and the reverse.
constexpr std::int64_t to_awq_order(std::int64_t i) {
  return i - i % kInterleaved + kAwqOrder[static_cast<std::size_t>(i % kInterleaved)];
}
constexpr std::int64_t from_awq_order(std::int64_t i) {
  for (std::int64_t nibble = 0; nibble < kInterleaved; ++nibble) {
    if (kAwqOrder[static_cast<std::size_t>(nibble)] == i % kInterleaved) return i - i % kInterleaved + nibble;
  }
  return i;
}

/// Vectors of units in a common space, [num_units, width]: rows of one linear, or columns of another.
struct UnitVectors {
  std::span<const float> values;
  std::int64_t width = 0;

  std::int64_t num_units() const { return width > 0 ? static_cast<std::int64_t>(values.size()) / width : 0; }
};

/// Which dimension of the vectors the codes of a file may be interleaved along.
enum class InterleavedAlong : std::uint8_t { Units, Width, Nothing };

/// How well the units of two linears line up: mean squared cosine of corresponding vectors, times the width, which is
/// 1 for unrelated vectors. In trained models what feeds a hidden unit and what it feeds are aligned: up and down, v
/// and o, q and k reach 10 to 100 and more.
double alignment(const UnitVectors& a, const UnitVectors& b);

/// The vectors as they are when the codes that were read in order stand in AWQ's (`Width` and `Units` of GPTQ-like
/// files) or the codes that were read in AWQ's order stand in order.
enum class Reading : std::uint8_t { AwqAsPlain, PlainAsAwq };
std::vector<float> reordered(const UnitVectors& vectors, InterleavedAlong along, Reading reading);

}  // namespace nibble::verify
