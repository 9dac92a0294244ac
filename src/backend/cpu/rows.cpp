// Regime: one row of activations (a token), width 500 … 30000, f32 in L1 or L2. Everything here is bound by memory or,
// in silu, by the exponential; the aim is one pass and no branches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rows.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include <algorithm>
#include <bit>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "core/fp8_e4m3.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that the lane sums below have one order for a target.
using F32 = hn::CappedTag<float, 16>;
using I32 = hn::RebindToSigned<F32>;

float add_and_square(const float* from, const float* delta, std::int64_t width, float* to) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    auto x = hn::LoadU(d, from + j);
    if (delta != nullptr) x = hn::Add(x, hn::LoadU(d, delta + j));
    hn::StoreU(x, d, to + j);
    sum = hn::MulAdd(x, x, sum);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; j < width; ++j) {
    to[j] = from[j] + (delta != nullptr ? delta[j] : 0.0f);
    total += to[j] * to[j];
  }
  return total;
}

void scale_by_weight(const float* from, float scale, const float* weight, std::int64_t width, float* to) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, scale);
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, from + j), factor), hn::LoadU(d, weight + j)), d, to + j);
  }
  for (; j < width; ++j) to[j] = from[j] * scale * weight[j];
}

void add_row(const float* delta, std::int64_t width, float* to) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, to + j), hn::LoadU(d, delta + j)), d, to + j);
  }
  for (; j < width; ++j) to[j] += delta[j];
}

HWY_INLINE hn::Vec<F32> silu_mul(F32 d, hn::Vec<F32> gate, hn::Vec<F32> up) {
  const auto one = hn::Set(d, 1.0f);
  // Beyond 88 the exponential leaves f32; the quotient is zero to f32 precision long before.
  const auto denominator = hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(gate), hn::Set(d, 88.0f))));
  return hn::Mul(hn::Div(gate, denominator), up);
}

void silu_mul_row(const float* gate, const float* up, std::int64_t width, float* to) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    hn::StoreU(silu_mul(d, hn::LoadU(d, gate + j), hn::LoadU(d, up + j)), d, to + j);
  }
  if (j == width) return;
  HWY_ALIGN float tail[3][16] = {};
  for (std::int64_t i = 0; i < width - j; ++i) {
    tail[0][i] = gate[j + i];
    tail[1][i] = up[j + i];
  }
  hn::Store(silu_mul(d, hn::Load(d, tail[0]), hn::Load(d, tail[1])), d, tail[2]);
  for (std::int64_t i = 0; i < width - j; ++i) to[j + i] = tail[2][i];
}

// One group of a multiple of 16 values.
void quantize_group(const float* from, std::int64_t count, std::int8_t* high, std::int8_t* low, float& scale,
                    std::int32_t& sum) {
  constexpr float kLargest = 128 * 127;
  const F32 d;
  const I32 di;
  const hn::Rebind<std::int8_t, F32> d8;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest = hn::Zero(d);
  auto probe = hn::Zero(d);  // 0 * x: NaN where x is not finite
  for (std::int64_t j = 0; j < count; j += lanes) {
    const auto x = hn::LoadU(d, from + j);
    largest = hn::Max(largest, hn::Abs(x));
    probe = hn::MulAdd(x, hn::Zero(d), probe);
  }
  const float absmax = hn::GetLane(hn::MaxOfLanes(d, largest));
  scale = absmax / kLargest + hn::GetLane(hn::SumOfLanes(d, probe));
  const auto inverse = hn::Set(d, absmax > 0 ? kLargest / absmax : 0.0f);
  auto total = hn::Zero(di);
  for (std::int64_t j = 0; j < count; j += lanes) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, from + j), inverse));
    // high = round(integer / 128), low = the rest, -64 … 63.
    const auto upper = hn::ShiftRight<7>(hn::Add(rounded, hn::Set(di, 64)));
    hn::StoreU(hn::DemoteTo(d8, upper), d8, high + j);
    hn::StoreU(hn::DemoteTo(d8, hn::Sub(rounded, hn::ShiftLeft<7>(upper))), d8, low + j);
    total = hn::Add(total, rounded);
  }
  sum = hn::GetLane(hn::SumOfLanes(di, total));
}

void quantize_row(const float* from, std::int64_t width, std::int64_t group_size, std::int8_t* planes, float* scales,
                  std::int32_t* sums) {
  for (std::int64_t g = 0; g * group_size < width; ++g) {
    std::int8_t* high = planes + g * group_size;
    quantize_group(from + g * group_size, group_size, high, high + width, scales[g], sums[g]);
  }
}

float absmax_of_row(const float* from, std::int64_t width) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest = hn::Zero(d);
  auto probe = hn::Zero(d);  // 0 * x: NaN where x is not finite
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    const auto x = hn::LoadU(d, from + j);
    largest = hn::Max(largest, hn::Abs(x));
    probe = hn::MulAdd(x, hn::Zero(d), probe);
  }
  float total = hn::GetLane(hn::MaxOfLanes(d, largest));
  float invalid = hn::GetLane(hn::SumOfLanes(d, probe));
  for (; j < width; ++j) {
    total = std::max(total, std::abs(from[j]));
    invalid += from[j] * 0.0f;
  }
  return total + invalid;
}

void narrow_row_to_fp8(const float* from, std::int64_t width, float scale, std::uint8_t* codes) {
  const F32 d;
  const hn::RebindToUnsigned<F32> bits;
  const hn::Rebind<std::uint8_t, F32> bytes;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  // As fp8_e4m3_bits, in vectors.
  const auto smallest_normal = hn::Set(d, 0x1p-6f);
  const auto bias = hn::Set(bits, (120u << 23) - 0x7ffffu);
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    const auto x = hn::Div(hn::LoadU(d, from + j), hn::Set(d, scale));
    const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(bits, x)), hn::Set(bits, 0x80u));
    const auto magnitude = hn::Min(hn::Abs(x), hn::Set(d, 448.0f));
    const auto exact = hn::BitCast(bits, magnitude);
    const auto odd = hn::And(hn::ShiftRight<20>(exact), hn::Set(bits, 1u));
    const auto normal = hn::ShiftRight<20>(hn::Add(hn::Sub(exact, bias), odd));
    const auto aligned = hn::BitCast(bits, hn::Add(magnitude, hn::Set(d, 0x1p14f)));
    const auto subnormal = hn::Sub(aligned, hn::Set(bits, 0x46800000u));
    const auto is_small = hn::RebindMask(bits, hn::Lt(magnitude, smallest_normal));
    const auto is_nan = hn::RebindMask(bits, hn::IsNaN(x));
    const auto code = hn::IfThenElse(is_nan, hn::Set(bits, 0x7fu), hn::IfThenElse(is_small, subnormal, normal));
    hn::StoreU(hn::DemoteTo(bytes, hn::BitCast(I32(), hn::Or(sign, code))), bytes, codes + j);
  }
  for (; j < width; ++j) codes[j] = fp8_e4m3_bits(from[j] / scale);
}

void narrow_to_half(const float* from, std::int64_t width, hwy::float16_t* to) {
  const F32 d;
  const hn::Rebind<hwy::float16_t, F32> narrow;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + lanes <= width; j += lanes) hn::StoreU(hn::DemoteTo(narrow, hn::LoadU(d, from + j)), narrow, to + j);
  for (; j < width; ++j) to[j] = std::bit_cast<hwy::float16_t>(to_half(from[j]));
}

void narrow_row(const float* from, std::int64_t width, DType dtype, void* to) {
  // Highway 1.0.3 rounds bf16 and, where it emulates vectors, f16 towards zero.
  if (dtype == DType::F16 && HWY_TARGET != HWY_EMU128) {
    narrow_to_half(from, width, static_cast<hwy::float16_t*>(to));
  } else {
    convert({from, DType::F32, {1, width}}, {to, dtype, {1, width}});
  }
}

void rotate_pairs(float* x, const float* cosines, const float* sines, std::int64_t half) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + lanes <= half; j += lanes) {
    const auto a = hn::LoadU(d, x + j);
    const auto b = hn::LoadU(d, x + half + j);
    const auto c = hn::LoadU(d, cosines + j);
    const auto s = hn::LoadU(d, sines + j);
    hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), d, x + j);
    hn::StoreU(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), d, x + half + j);
  }
  for (; j < half; ++j) {
    const float a = x[j];
    const float b = x[half + j];
    x[j] = a * cosines[j] - b * sines[j];
    x[half + j] = b * cosines[j] + a * sines[j];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(add_and_square);
HWY_EXPORT(scale_by_weight);
HWY_EXPORT(add_row);
HWY_EXPORT(silu_mul_row);
HWY_EXPORT(quantize_row);
HWY_EXPORT(narrow_row);
HWY_EXPORT(narrow_row_to_fp8);
HWY_EXPORT(absmax_of_row);
HWY_EXPORT(rotate_pairs);

float add_and_square(const float* from, const float* delta, std::int64_t width, float* to) {
  return HWY_DYNAMIC_DISPATCH(add_and_square)(from, delta, width, to);
}
void scale_by_weight(const float* from, float scale, const float* weight, std::int64_t width, float* to) {
  HWY_DYNAMIC_DISPATCH(scale_by_weight)(from, scale, weight, width, to);
}
void add_row(const float* delta, std::int64_t width, float* to) {
  HWY_DYNAMIC_DISPATCH(add_row)(delta, width, to);
}
void silu_mul_row(const float* gate, const float* up, std::int64_t width, float* to) {
  HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, up, width, to);
}
void quantize_row(const float* from, std::int64_t width, std::int64_t group_size, std::int8_t* planes, float* scales,
                  std::int32_t* sums) {
  HWY_DYNAMIC_DISPATCH(quantize_row)(from, width, group_size, planes, scales, sums);
}
void narrow_row(const float* from, std::int64_t width, DType dtype, void* to) {
  HWY_DYNAMIC_DISPATCH(narrow_row)(from, width, dtype, to);
}
void narrow_row_to_fp8(const float* from, std::int64_t width, float scale, std::uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(narrow_row_to_fp8)(from, width, scale, codes);
}
float absmax_of_row(const float* from, std::int64_t width) {
  return HWY_DYNAMIC_DISPATCH(absmax_of_row)(from, width);
}
void rotate_pairs(float* x, const float* cosines, const float* sines, std::int64_t half) {
  HWY_DYNAMIC_DISPATCH(rotate_pairs)(x, cosines, sines, half);
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
