// Regime: y[M, N] = x[M, K] W[N, K]^T with float weights; M from 1 (decode) to a prefill chunk of some hundreds.
// Layout in: DenseTiles (16 output rows a tile, K outermost), x row-major f32. Layout out: y row-major f32.
// Bytes moved per weight: 2 or 4, once for every kMaxTokens tokens from L2, once a call from memory. Ceilings: memory
// bandwidth for M <= 4, then two fused multiply-adds a cycle.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/dense_kernels.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include "backend/cpu/dense_kernels-inl.h"
#include "backend/cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

template <class T>
void dense_tiles_of(const DenseTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                    std::span<const float> bias, Matrix<float> y) {
  const std::int64_t tile_elements = w.in_features * kTileRows;
  const T* values = static_cast<const T*>(w.values.view().data()) + first_tile * tile_elements;
  dense_panel<T>(values, num_tiles, first_tile * kTileRows, w.out_features, x, {{}, bias}, y);
}

void dense_tiles(const DenseTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                 std::span<const float> bias, Matrix<float> y) {
  switch (w.dtype) {
    case DType::F32: return dense_tiles_of<float>(w, first_tile, num_tiles, x, bias, y);
    case DType::F16: return dense_tiles_of<hwy::float16_t>(w, first_tile, num_tiles, x, bias, y);
    case DType::BF16: return dense_tiles_of<hwy::bfloat16_t>(w, first_tile, num_tiles, x, bias, y);
    default: check(false, "dense tiles of another dtype");
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(dense_tiles);

void dense_tiles(const DenseTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                 std::span<const float> bias, Matrix<float> y) {
  HWY_DYNAMIC_DISPATCH(dense_tiles)(w, first_tile, num_tiles, x, bias, y);
}

std::string simd_name() {
  const std::int64_t target = hwy::SupportedTargets() & HWY_TARGETS;
  // The lowest bit is the best target.
  return std::string(hwy::TargetName(target & -target)) + (amx_is_allowed() ? " + AMX" : "");
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
