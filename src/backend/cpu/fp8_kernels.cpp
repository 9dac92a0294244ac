// Regime: y[M, N] = x[M, K] W[N, K]^T with E4M3 weights and f32 activations; M from 1 (decode) to a prefill chunk.
// Layout in: Fp8Tiles (layout.h), x row-major f32. Layout out: y row-major f32.
// Decode: codes become f32 in registers (tile-inl.h), 1 byte a weight from memory; ceiling: memory bandwidth. From
// kPanelTokens tokens on, some tiles at a time are unpacked to f16, which holds every code exactly, and meet all
// tokens as dense weights do; ceiling: two fused multiply-adds a cycle.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/fp8_kernels.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include <algorithm>

#include "backend/cpu/dense_kernels-inl.h"
#include "backend/cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Unpacking costs about as much as two tokens' products.
inline constexpr std::int64_t kPanelTokens = 16;
// A panel of two blocks of dense_panel stays in L2 beside the inputs of some tokens.
inline constexpr std::int64_t kPanelTiles = 2 * kWideTiles;
// Tokens whose inputs are scaled at once, where weights have scales per block.
inline constexpr std::int64_t kScaledTokens = 2 * kMaxTokens;

/// Some tiles against `x`, whichever way is faster for so many tokens; both give the same bits.
void fp8_panel(const Fp8Tiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
               const Epilogue& epilogue, Matrix<float> y, const hwy::float16_t* panel, std::int64_t num_tokens) {
  const std::int64_t tile_elements = w.in_features * kTileRows;
  const Fp8E4M3* codes = static_cast<const Fp8E4M3*>(w.codes.view().data()) + first_tile * tile_elements;
  if (num_tokens < kPanelTokens) {
    dense_panel<Fp8E4M3>(codes, num_tiles, first_tile * kTileRows, w.out_features, x, epilogue, y);
  } else {
    dense_panel<hwy::float16_t>(panel, num_tiles, first_tile * kTileRows, w.out_features, x, epilogue, y);
  }
}

void unpack_tiles(const Fp8Tiles& w, std::int64_t first_tile, std::int64_t num_tiles, hwy::float16_t* panel) {
  const std::int64_t tile_elements = w.in_features * kTileRows;
  const Fp8E4M3* codes = static_cast<const Fp8E4M3*>(w.codes.view().data()) + first_tile * tile_elements;
  unpack_fp8(codes, num_tiles * tile_elements, panel);
}

/// to[t, k] = x[t, k] times the scale of k's block: one scale serves a whole tile, so scaling the inputs costs a
/// sixteenth of scaling the weights.
void scale_inputs(Matrix<const float> x, const float* HWY_RESTRICT scales, std::int64_t block_size,
                  float* HWY_RESTRICT to) {
  const F32 d;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* from = x.row(t);
    for (std::int64_t first = 0; first < x.cols; first += block_size) {
      const float scale = scales[first / block_size];
      const std::int64_t end = std::min(x.cols, first + block_size);
      std::int64_t k = first;
      for (; k + kLanes <= end; k += kLanes) {
        hn::StoreU(hn::Mul(hn::LoadU(d, from + k), hn::Set(d, scale)), d, to + t * x.cols + k);
      }
      for (; k < end; ++k) to[t * x.cols + k] = from[k] * scale;
    }
  }
}

void fp8_tiles(const Fp8Tiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  auto* panel = reinterpret_cast<hwy::float16_t*>(scratch);
  auto* scaled = reinterpret_cast<float*>(panel + kPanelTiles * w.in_features * kTileRows);
  const bool uses_panel = x.rows >= kPanelTokens;
  const std::int64_t end = first_tile + num_tiles;
  const std::int64_t tiles_per_block = w.block_size / kTileRows;
  std::int64_t count = 0;
  for (std::int64_t tile = first_tile; tile < end; tile += count) {
    count = uses_panel ? std::min<std::int64_t>(kPanelTiles, end - tile) : end - tile;
    if (w.block_size > 0) count = std::min(count, tiles_per_block - tile % tiles_per_block);
    if (uses_panel) unpack_tiles(w, tile, count, panel);
    if (w.block_size == 0) {
      fp8_panel(w, tile, count, x, {w.scales.span<float>(), bias}, y, panel, x.rows);
      continue;
    }
    const float* scales = w.scales.matrix<float>().row(tile / tiles_per_block);
    for (std::int64_t t = 0; t < x.rows; t += kScaledTokens) {
      const Matrix<const float> rows = x.block(t, std::min(kScaledTokens, x.rows - t));
      scale_inputs(rows, scales, w.block_size, scaled);
      fp8_panel(w, tile, count, {scaled, rows.rows, rows.cols, rows.cols}, {{}, bias}, y.block(t, rows.rows), panel,
                x.rows);
    }
  }
}

std::size_t fp8_scratch_bytes(const Fp8Tiles& w) {
  const std::int64_t panel =
      kPanelTiles * w.in_features * kTileRows * static_cast<std::int64_t>(sizeof(hwy::float16_t));
  const std::int64_t scaled =
      w.block_size > 0 ? kScaledTokens * w.in_features * static_cast<std::int64_t>(sizeof(float)) : 0;
  return static_cast<std::size_t>(panel + scaled);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(fp8_tiles);
HWY_EXPORT(fp8_scratch_bytes);

void fp8_tiles(const Fp8Tiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(fp8_tiles)(w, first_tile, num_tiles, x, bias, y, scratch);
}

std::size_t fp8_scratch_bytes(const Fp8Tiles& w) {
  return HWY_DYNAMIC_DISPATCH(fp8_scratch_bytes)(w);
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
