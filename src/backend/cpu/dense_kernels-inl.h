// Float panels times f32 activations; included once for each SIMD target.
#if defined(NIBBLE_CPU_DENSE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_CPU_DENSE_KERNELS_INL_H_
#undef NIBBLE_CPU_DENSE_KERNELS_INL_H_
#else
#define NIBBLE_CPU_DENSE_KERNELS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <type_traits>

#include "backend/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

// AVX-512 has 32 registers: 2 tiles x 8 tokens of sums, 2 of weights, broadcasts from memory. AVX2 has 16: one tile is
// two vectors, 4 tokens make 8 sums. With one token, four tiles side by side hide the latency of the multiply-add.
inline constexpr int kMaxTokens = kParts == 1 ? 8 : 4;
inline constexpr int kWideTiles = kParts == 1 ? 2 : 1;

// FP8 codes are unpacked to f16 in a buffer in L1, so many inputs at a time: widening the buffer's numbers to f32 is
// part of a load, where widening a register takes the shuffle port as well, which the unpacking needs.
inline constexpr std::int64_t kUnpackRun = 64;
template <class T>
inline constexpr bool kIsFp8 = std::is_same_v<T, Fp8E4M3>;

/// `count` codes, a multiple of 16, as f16 numbers that are short of kFp8CodeScale.
HWY_INLINE void unpack_fp8(const Fp8E4M3* HWY_RESTRICT codes, std::int64_t count, hwy::float16_t* HWY_RESTRICT to) {
  const hn::CappedTag<std::int16_t, 2 * kTileRows> wide;
  const hn::CappedTag<std::int16_t, kTileRows> narrow;
  std::int64_t i = 0;
  for (; i + static_cast<std::int64_t>(hn::Lanes(wide)) <= count; i += static_cast<std::int64_t>(hn::Lanes(wide))) {
    hn::StoreU(fp8_as_half_bits(wide, codes + i), wide, reinterpret_cast<std::int16_t*>(to) + i);
  }
  for (; i < count; i += static_cast<std::int64_t>(hn::Lanes(narrow))) {
    hn::StoreU(fp8_as_half_bits(narrow, codes + i), narrow, reinterpret_cast<std::int16_t*>(to) + i);
  }
}

template <class T, int kTiles, int kTokens>
HWY_INLINE void dense_block(const T* HWY_RESTRICT values, std::int64_t first_row, std::int64_t out_features,
                            Matrix<const float> x, std::int64_t first_token, const Epilogue& epilogue,
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
  using Stored = std::conditional_t<kIsFp8<T>, hwy::float16_t, T>;
  HWY_ALIGN Stored unpacked[kIsFp8<T> ? kTiles * kUnpackRun * kTileRows : 1];
  const std::int64_t run = kIsFp8<T> ? kUnpackRun : in_features;
  for (std::int64_t first = 0; first < in_features; first += run) {
    const std::int64_t count = std::min(run, in_features - first);
    const Stored* tiles[kTiles];
    for (int tile = 0; tile < kTiles; ++tile) {
      const T* stored = values + tile * tile_elements + first * kTileRows;
      if constexpr (kIsFp8<T>) {
        // The hardware's streams stop at every 4 KiB page; what lies a page ahead is asked for here.
        if constexpr (kTokens <= 2) {
          for (std::int64_t line = 0; line < kUnpackRun * kTileRows; line += 64) hwy::Prefetch(stored + 4096 + line);
        }
        unpack_fp8(stored, count * kTileRows, unpacked + tile * kUnpackRun * kTileRows);
        tiles[tile] = unpacked + tile * kUnpackRun * kTileRows;
      } else {
        tiles[tile] = stored;
      }
    }
    for (std::int64_t k = 0; k < count; ++k) {
      for (int tile = 0; tile < kTiles; ++tile) {
        VF w[kParts];
        for (int p = 0; p < kParts; ++p) w[p] = load_float(tiles[tile] + k * kTileRows + p * kLanes);
        for (int t = 0; t < kTokens; ++t) {
          const VF broadcast = hn::Set(d, x_rows[t][first + k]);
          for (int p = 0; p < kParts; ++p) sums[tile][t][p] = hn::MulAdd(w[p], broadcast, sums[tile][t][p]);
        }
      }
    }
  }
  for (int tile = 0; tile < kTiles; ++tile) {
    const std::int64_t row = first_row + tile * kTileRows;
    for (int t = 0; t < kTokens; ++t) {
      if (!epilogue.scales.empty()) {
        for (int p = 0; p < kParts; ++p) {
          sums[tile][t][p] = hn::Mul(sums[tile][t][p], hn::LoadU(d, &epilogue.scales[0] + row + p * kLanes));
        }
      }
      store_tile_rows(sums[tile][t], row, out_features, epilogue.bias, y.row(first_token + t));
    }
  }
}

template <class T, int kTiles>
void dense_all_tokens(const T* values, std::int64_t first_row, std::int64_t out_features, Matrix<const float> x,
                      const Epilogue& epilogue, Matrix<float> y) {
  std::int64_t t = 0;
  for (; t + kMaxTokens <= x.rows; t += kMaxTokens) {
    dense_block<T, kTiles, kMaxTokens>(values, first_row, out_features, x, t, epilogue, y);
  }
  if constexpr (kMaxTokens > 4) {
    for (; t + 4 <= x.rows; t += 4) dense_block<T, kTiles, 4>(values, first_row, out_features, x, t, epilogue, y);
  }
  for (; t + 2 <= x.rows; t += 2) dense_block<T, kTiles, 2>(values, first_row, out_features, x, t, epilogue, y);
  for (; t < x.rows; ++t) dense_block<T, kTiles, 1>(values, first_row, out_features, x, t, epilogue, y);
}

/// `values`: tiles [num_tiles, in_features, 16], the first of which holds output row `first_row`.
template <class T>
void dense_panel(const T* values, std::int64_t num_tiles, std::int64_t first_row, std::int64_t out_features,
                 Matrix<const float> x, const Epilogue& epilogue, Matrix<float> y) {
  const std::int64_t tile_elements = x.cols * kTileRows;
  std::int64_t tile = 0;
  if (x.rows <= 2) {
    for (; tile + 4 <= num_tiles; tile += 4) {
      dense_all_tokens<T, 4>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x, epilogue, y);
    }
  }
  for (; tile + kWideTiles <= num_tiles; tile += kWideTiles) {
    dense_all_tokens<T, kWideTiles>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x,
                                    epilogue, y);
  }
  for (; tile < num_tiles; ++tile) {
    dense_all_tokens<T, 1>(values + tile * tile_elements, first_row + tile * kTileRows, out_features, x, epilogue, y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
