#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quantize/grid_error.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include "quantize/grid_error.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::quantize {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;

/// No fused multiply-add: rows are independent, so then every target computes the same.
void sum_grid_error(const float* HWY_RESTRICT weights, std::span<const float> importance, const GroupGrid& grid,
                    float max_code, float* HWY_RESTRICT error) {
  const F32 d;
  for (std::size_t r = 0; r < static_cast<std::size_t>(kTileRows); r += hn::Lanes(d)) {
    const auto scale = hn::LoadU(d, grid.scale.values.data() + r);
    const auto zero = hn::LoadU(d, grid.zero.values.data() + r);
    const auto inverse = hn::Div(hn::Set(d, 1.0f), scale);
    const auto lowest = hn::Neg(zero);
    const auto highest = hn::Sub(hn::Set(d, max_code), zero);
    auto sum = hn::Zero(d);
    for (std::size_t k = 0; k < importance.size(); ++k) {
      const auto w = hn::LoadU(d, weights + k * static_cast<std::size_t>(kTileRows) + r);
      // Clamped first: the ends are whole numbers.
      const auto level = hn::Round(hn::Min(hn::Max(hn::Mul(w, inverse), lowest), highest));
      const auto difference = hn::Sub(w, hn::Mul(scale, level));
      sum = hn::Add(sum, hn::Mul(hn::Mul(hn::Set(d, importance[k]), difference), difference));
    }
    hn::StoreU(sum, d, error + r);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::quantize
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::quantize {

HWY_EXPORT(sum_grid_error);

Lanes grid_error(const Tile& weights, std::int64_t first_column, std::span<const float> importance,
                 const GroupGrid& grid, float max_code) {
  Lanes error;
  HWY_DYNAMIC_DISPATCH(sum_grid_error)
  (weights.columns(first_column, static_cast<std::int64_t>(importance.size())).data, importance, grid, max_code,
   error.values.data());
  return error;
}

}  // namespace nibble::quantize
#endif  // HWY_ONCE
