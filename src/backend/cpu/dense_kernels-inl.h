// Float panels times f32 activations; included once for each SIMD target.
#if defined(NIBBLE_CPU_DENSE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_CPU_DENSE_KERNELS_INL_H_
#undef NIBBLE_CPU_DENSE_KERNELS_INL_H_
#else
#define NIBBLE_CPU_DENSE_KERNELS_INL_H_
#endif

#include "backend/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

// AVX-512 has 32 registers: 2 tiles x 8 tokens of sums, 2 of weights, broadcasts from memory. AVX2 has 16: one tile is
// two vectors, 4 tokens make 8 sums. With one token, four tiles side by side hide the latency of the multiply-add.
inline constexpr int kMaxTokens = kParts == 1 ? 8 : 4;
inline constexpr int kWideTiles = kParts == 1 ? 2 : 1;

template <class T, int kTiles, int kTokens>
HWY_INLINE void dense_block(const T* HWY_RESTRICT values, std::int64_t first_row, std::int64_t out_features,
                            Matrix<const float> x, std::int64_t first_token, std::span<const float> bias,
                            Matrix<float> y) {
  const F32 d;
  const std::int64_t in_features = x.cols;
  const std::int64_t tile_elements = in_features * kTileRows;
  VF sums[kTiles][kTokens][kParts];
  for (auto& tile : sums) {
    for (auto& token : tile) {
      for (auto& part : token) part = hn::Zero(d);
    }
  }
  const float* x_rows[kTokens];
  for (int t = 0; t < kTokens; ++t) x_rows[t] = x.row(first_token + t);
  for (std::int64_t k = 0; k < in_features; ++k) {
    for (int tile = 0; tile < kTiles; ++tile) {
      VF w[kParts];
      for (int p = 0; p < kParts; ++p) {
        w[p] = load_float(values + tile * tile_elements + k * kTileRows + p * kLanes);
      }
      for (int t = 0; t < kTokens; ++t) {
        const VF broadcast = hn::Set(d, x_rows[t][k]);
        for (int p = 0; p < kParts; ++p) sums[tile][t][p] = hn::MulAdd(w[p], broadcast, sums[tile][t][p]);
      }
    }
  }
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int t = 0; t < kTokens; ++t) {
      store_tile_rows(sums[tile][t], first_row + tile * kTileRows, out_features, bias, y.row(first_token + t));
    }
  }
}

template <class T, int kTiles>
void dense_all_tokens(const T* values, std::int64_t first_row, std::int64_t out_features, Matrix<const float> x,
                      std::span<const float> bias, Matrix<float> y) {
  std::int64_t t = 0;
  for (; t + kMaxTokens <= x.rows; t += kMaxTokens) {
    dense_block<T, kTiles, kMaxTokens>(values, first_row, out_features, x, t, bias, y);
  }
  if constexpr (kMaxTokens > 4) {
    for (; t + 4 <= x.rows; t += 4) dense_block<T, kTiles, 4>(values, first_row, out_features, x, t, bias, y);
  }
  for (; t + 2 <= x.rows; t += 2) dense_block<T, kTiles, 2>(values, first_row, out_features, x, t, bias, y);
  for (; t < x.rows; ++t) dense_block<T, kTiles, 1>(values, first_row, out_features, x, t, bias, y);
}

/// `values`: tiles [num_tiles, in_features, 16], the first of which holds output row `first_row`.
template <class T>
void dense_panel(const T* values, std::int64_t num_tiles, std::int64_t first_row, std::int64_t out_features,
                 Matrix<const float> x, std::span<const float> bias, Matrix<float> y) {
  const std::int64_t tile_elements = x.cols * kTileRows;
  std::int64_t tile = 0;
  if (x.rows <= 2) {
    for (; tile + 4 <= num_tiles; tile += 4) {
      dense_all_tokens<T, 4>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x, bias, y);
    }
  }
  for (; tile + kWideTiles <= num_tiles; tile += kWideTiles) {
    dense_all_tokens<T, kWideTiles>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x, bias,
                                    y);
  }
  for (; tile < num_tiles; ++tile) {
    dense_all_tokens<T, 1>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x, bias, y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
