#include "core/dtype.h"

#include <array>
#include <cmath>
#include <utility>

namespace nibble {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 9> kNames{{{DType::F32, "F32"},
                                                                    {DType::F16, "F16"},
                                                                    {DType::BF16, "BF16"},
                                                                    {DType::F8E4M3, "F8_E4M3"},
                                                                    {DType::I64, "I64"},
                                                                    {DType::I32, "I32"},
                                                                    {DType::I16, "I16"},
                                                                    {DType::I8, "I8"},
                                                                    {DType::U8, "U8"}}};

}  // namespace

std::string_view name(DType dtype) {
  for (const auto& [value, spelling] : kNames) {
    if (value == dtype) return spelling;
  }
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto& [value, spelling] : kNames) {
    if (spelling == name) return value;
  }
  return std::nullopt;
}

float to_float(Fp8E4M3 x) {
  const int exponent = (x.bits >> 3) & 15;
  const int mantissa = x.bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (x.bits & 0x80) != 0 ? -magnitude : magnitude;
}

Fp8E4M3 to_fp8_e4m3(float x) {
  const auto sign = static_cast<std::uint8_t>(std::signbit(x) ? 0x80 : 0);
  if (std::isnan(x)) return {static_cast<std::uint8_t>(sign | 0x7f)};
  const float magnitude = std::fmin(std::fabs(x), 448.0f);
  if (magnitude < 0x1p-6f) {  // subnormal: multiples of 2^-9; a carry to 8 is the smallest normal
    return {static_cast<std::uint8_t>(sign | static_cast<int>(std::nearbyint(magnitude * 512.0f)))};
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent with m in [0.5, 1)
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 4 - exponent)));  // 8…16
  return {static_cast<std::uint8_t>(sign | (((exponent + 6) << 3) + (steps - 8)))};
}

}  // namespace nibble
