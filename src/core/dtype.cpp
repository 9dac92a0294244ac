#include "core/dtype.h"

#include <array>
#include <limits>
#include <utility>

#include "core/fp8_e4m3.h"

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

/// What each code stands for.
constexpr std::array<float, 256> kFp8Values = [] {
  std::array<float, 256> values{};
  for (unsigned bits = 0; bits < 256; ++bits) {
    const unsigned exponent = (bits >> 3) & 15;
    const unsigned mantissa = bits & 7;
    float magnitude = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) * 0x1p-9f;
    for (unsigned e = 1; e < exponent; ++e) magnitude *= 2;
    if (exponent == 15 && mantissa == 7) magnitude = std::numeric_limits<float>::quiet_NaN();
    values[bits] = (bits & 0x80) != 0 ? -magnitude : magnitude;
  }
  return values;
}();

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
  return kFp8Values[x.bits];
}

Fp8E4M3 to_fp8_e4m3(float x) {
  return {fp8_e4m3_bits(x)};
}

}  // namespace nibble
