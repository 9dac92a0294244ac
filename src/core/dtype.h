#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

/// Element types of tensors, in memory and in safetensors files.
enum class DType : std::uint8_t { F32, F16, BF16, F8E4M3, I64, I32, I16, I8, U8 };

/// Bytes of one element.
constexpr std::size_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::I64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::F16:
    case DType::BF16:
    case DType::I16: return 2;
    case DType::F8E4M3:
    case DType::I8:
    case DType::U8: return 1;
  }
  return 0;
}

/// safetensors' spelling: "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8".
std::string_view name(DType dtype);
/// Inverse of `name(DType)`; nothing for a spelling that nibble does not know.
std::optional<DType> dtype_from_name(std::string_view name);

constexpr bool is_float(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::F8E4M3;
}

/// Storage types: bits only, arithmetic happens in float.
struct Half {
  std::uint16_t bits = 0;
};
struct BFloat16 {
  std::uint16_t bits = 0;
};
/// E4M3FN: bias 7, largest 448 (0x7e), NaN 0x7f and 0xff, no infinities.
struct Fp8E4M3 {
  std::uint8_t bits = 0;
};

template <class T>
inline constexpr std::optional<DType> dtype_of = std::nullopt;
template <>
inline constexpr std::optional<DType> dtype_of<float> = DType::F32;
template <>
inline constexpr std::optional<DType> dtype_of<Half> = DType::F16;
template <>
inline constexpr std::optional<DType> dtype_of<BFloat16> = DType::BF16;
template <>
inline constexpr std::optional<DType> dtype_of<Fp8E4M3> = DType::F8E4M3;
template <>
inline constexpr std::optional<DType> dtype_of<std::int64_t> = DType::I64;
template <>
inline constexpr std::optional<DType> dtype_of<std::int32_t> = DType::I32;
template <>
inline constexpr std::optional<DType> dtype_of<std::int16_t> = DType::I16;
template <>
inline constexpr std::optional<DType> dtype_of<std::int8_t> = DType::I8;
template <>
inline constexpr std::optional<DType> dtype_of<std::uint8_t> = DType::U8;

inline float to_float(float x) {
  return x;
}

inline float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float to_float(Half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // infinity or NaN: all exponent bits set
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x007fffffu));
  }
  // Subnormals come out right because the multiplication rescales them exactly.
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f));
}

/// Round half to even; overflow gives infinity, NaN stays NaN.
inline Half to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 aligns the last kept bit with float's last bit, so the FPU rounds to even.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) - 0x3f000000u))};
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

/// Round half to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

float to_float(Fp8E4M3 x);
/// Round half to even after clamping to ±448 (formats.md §3); NaN stays NaN.
Fp8E4M3 to_fp8_e4m3(float x);

}  // namespace nibble
