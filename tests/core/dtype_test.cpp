#include "core/dtype.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace nibble {
namespace {

/// Value of a small float format by its definition, in double: exact for every format here.
struct FloatFormat {
  int exponent_bits;
  int mantissa_bits;

  double value(unsigned bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const unsigned mantissa = bits & ((1u << mantissa_bits) - 1);
    const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
    const bool negative = ((bits >> (mantissa_bits + exponent_bits)) & 1u) != 0;
    const double magnitude = exponent == 0
                                 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                 : std::ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
    return negative ? -magnitude : magnitude;
  }
};

constexpr FloatFormat kHalf{5, 10};
constexpr FloatFormat kBFloat16{8, 7};
constexpr FloatFormat kFp8E4M3{4, 3};

TEST(DType, EveryHalfBecomesItsValue) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = to_float(Half{static_cast<std::uint16_t>(bits)});
    const unsigned magnitude = bits & 0x7fffu;
    if (magnitude > 0x7c00u) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else if (magnitude == 0x7c00u) {
      EXPECT_EQ(value, bits < 0x8000u ? INFINITY : -INFINITY);
    } else {
      ASSERT_EQ(static_cast<double>(value), kHalf.value(bits)) << bits;
      ASSERT_EQ(std::signbit(value), bits >= 0x8000u) << bits;
    }
  }
}

TEST(DType, EveryHalfComesBackFromFloat) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const Half back = to_half(to_float(half));
    if ((bits & 0x7fffu) > 0x7c00u) {
      EXPECT_TRUE(std::isnan(to_float(back))) << bits;
    } else {
      ASSERT_EQ(back.bits, bits);
    }
  }
}

/// Between two neighbours everything rounds to the nearer one, and the middle to the one with an even last bit.
template <class Encode>
void expect_round_to_even(const FloatFormat& format, unsigned largest, Encode encode) {
  for (unsigned low = 0; low < largest; ++low) {
    const double middle = (format.value(low) + format.value(low + 1)) / 2;
    const auto exact = static_cast<float>(middle);
    ASSERT_EQ(static_cast<double>(exact), middle);  // else this test would prove nothing
    ASSERT_EQ(encode(exact), low % 2 == 0 ? low : low + 1) << low;
    ASSERT_EQ(encode(std::nextafter(exact, 0.0f)), low) << low;
    ASSERT_EQ(encode(std::nextafter(exact, INFINITY)), low + 1) << low;
  }
}

TEST(DType, FloatRoundsToTheNearestHalfTiesToEven) {
  expect_round_to_even(kHalf, 0x7bff, [](float x) { return to_half(x).bits; });
  EXPECT_EQ(to_half(-0.0f).bits, 0x8000);
  EXPECT_EQ(to_half(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_half(65519.996f).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_half(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_half(INFINITY).bits, 0x7c00);
}

TEST(DType, FloatRoundsToTheNearestBFloat16TiesToEven) {
  // Subnormal midpoints are below float's own subnormals only for the lowest: bf16 has float's exponents.
  expect_round_to_even(kBFloat16, 0x7f7f, [](float x) { return to_bfloat16(x).bits; });
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DType, EveryBFloat16BecomesItsValueAndComesBack) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const unsigned magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7f80u) continue;
    const float value = to_float(BFloat16{static_cast<std::uint16_t>(bits)});
    ASSERT_EQ(static_cast<double>(value), kBFloat16.value(bits)) << bits;
    ASSERT_EQ(to_bfloat16(value).bits, bits);
  }
}

TEST(DType, EveryFp8E4M3BecomesItsValueAndComesBack) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const float value = to_float(Fp8E4M3{static_cast<std::uint8_t>(bits)});
    if ((bits & 0x7fu) == 0x7fu) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), kFp8E4M3.value(bits)) << bits;
    ASSERT_EQ(to_fp8_e4m3(value).bits, bits);
  }
}

TEST(DType, FloatRoundsToTheNearestFp8E4M3TiesToEvenAndClamps) {
  expect_round_to_even(kFp8E4M3, 0x7e, [](float x) { return to_fp8_e4m3(x).bits; });
  EXPECT_EQ(to_fp8_e4m3(1e9f).bits, 0x7e);
  EXPECT_EQ(to_fp8_e4m3(-INFINITY).bits, 0xfe);
  EXPECT_EQ(to_fp8_e4m3(std::nanf("")).bits & 0x7f, 0x7f);
}

TEST(DType, Fp8E4M3HasTheGoldenValues) {
  const auto value = [](std::uint8_t bits) { return to_float(Fp8E4M3{bits}); };
  EXPECT_EQ(value(0x01), 0x1p-9f);
  EXPECT_EQ(value(0x07), 0.013671875f);
  EXPECT_EQ(value(0x08), 0x1p-6f);
  EXPECT_EQ(value(0x38), 1.0f);
  EXPECT_EQ(value(0x7d), 416.0f);
  EXPECT_EQ(value(0x7e), 448.0f);
}

TEST(DType, NamesAreThoseOfSafetensors) {
  for (const DType dtype :
       {DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::I64, DType::I32, DType::I16, DType::I8, DType::U8}) {
    EXPECT_EQ(dtype_from_name(name(dtype)), dtype);
  }
  EXPECT_EQ(name(DType::F8E4M3), "F8_E4M3");
  EXPECT_EQ(dtype_from_name("F64"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

}  // namespace
}  // namespace nibble
