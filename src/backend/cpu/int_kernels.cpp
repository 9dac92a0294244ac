// Regime: y[M, N] = x[M, K] W[N, K]^T with integer weights of 2, 3, 4 or 8 bits and 15-bit activations.
// Layout in: IntTiles (layout.h), IntRows. Layout out: y row-major f32.
// Decode (M <= kMaxIntTokens): codes unpack in registers, each 64-byte block read once; bytes moved per weight: bits /
// 8 plus 2 … 4 bytes a group; ceiling: memory bandwidth. Prefill: a tile is unpacked once to bytes that stay in L1 or
// L2 and meets all tokens; ceiling: the integer dot product, 64 multiply-adds an instruction with AVX-512 VNNI.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/int_kernels.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include <cstring>

#include <hwy/cache_control.h>

#include "backend/cpu/dense_kernels-inl.h"
#include "backend/cpu/int_amx.h"
#include "backend/cpu/kernels.h"

// Highway's AVX3_DL implies VNNI on the machine but does not ask the compiler for it.
#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_BEFORE_NAMESPACE();
#endif
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using I32 = hn::RebindToSigned<F32>;
using VI = hn::Vec<I32>;
using U8 = hn::Repartition<std::uint8_t, F32>;  // 64 bytes of a block in kParts vectors
using V8 = hn::Vec<U8>;

/// sums[row] += codes[row][0..3] . x[0..3], where x repeats one token's four values in every lane. kNarrow: codes are
/// at most 15, so that two products fit 16 bits (2 * 15 * 127) and maddubs cannot saturate.
template <bool kNarrow>
HWY_INLINE VI dot_quads(VI sums, V8 codes, VI x) {
#if HWY_TARGET == HWY_AVX3_DL
  return VI{_mm512_dpbusd_epi32(sums.raw, codes.raw, x.raw)};
#elif HWY_TARGET == HWY_AVX3
  if constexpr (kNarrow) {
    const __m512i pairs = _mm512_maddubs_epi16(codes.raw, x.raw);
    return VI{_mm512_add_epi32(sums.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
#elif HWY_TARGET == HWY_AVX2
  if constexpr (kNarrow) {
    const __m256i pairs = _mm256_maddubs_epi16(codes.raw, x.raw);
    return VI{_mm256_add_epi32(sums.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
  }
#endif
#if HWY_TARGET == HWY_AVX3
  // Products of 8 by 8 bits need 16 bits each: even and odd bytes apart.
  const __m512i even_x = _mm512_srai_epi16(_mm512_slli_epi16(x.raw, 8), 8);
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.raw, _mm512_set1_epi16(255)), even_x);
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.raw, 8), _mm512_srai_epi16(x.raw, 8));
  return VI{_mm512_add_epi32(sums.raw, _mm512_add_epi32(even, odd))};
#elif HWY_TARGET == HWY_AVX2
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(x.raw, 8), 8);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes.raw, _mm256_set1_epi16(255)), even_x);
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes.raw, 8), _mm256_srai_epi16(x.raw, 8));
  return VI{_mm256_add_epi32(sums.raw, _mm256_add_epi32(even, odd))};
#elif HWY_TARGET != HWY_AVX3_DL
  // Anywhere: one byte of each lane at a time, widened to 32 bits.
  const I32 d;
  const VI c = hn::BitCast(d, codes);
  const VI byte = hn::Set(d, 255);
  sums = hn::Add(sums, hn::Mul(hn::And(c, byte), hn::ShiftRight<24>(hn::ShiftLeft<24>(x))));
  sums = hn::Add(sums, hn::Mul(hn::And(hn::ShiftRight<8>(c), byte), hn::ShiftRight<24>(hn::ShiftLeft<16>(x))));
  sums = hn::Add(sums, hn::Mul(hn::And(hn::ShiftRight<16>(c), byte), hn::ShiftRight<24>(hn::ShiftLeft<8>(x))));
  return hn::Add(sums, hn::Mul(hn::And(hn::ShiftRight<24>(c), byte), hn::ShiftRight<24>(x)));
#endif
}

template <int kShift>
HWY_INLINE V8 shift_bytes_right(V8 bytes) {  // neighbours' bits come along; callers mask
  const hn::Repartition<std::uint32_t, U8> d32;
  return hn::BitCast(U8(), hn::ShiftRight<kShift>(hn::BitCast(d32, bytes)));
}
template <int kShift>
HWY_INLINE V8 shift_bytes_left(V8 bytes) {
  const hn::Repartition<std::uint32_t, U8> d32;
  return hn::BitCast(U8(), hn::ShiftLeft<kShift>(hn::BitCast(d32, bytes)));
}

/// Codes of step kStep (0 … 7) of a chunk, rows of part p (layout.h, IntTiles).
template <int kBits, int kStep>
HWY_INLINE V8 unpack_step(const std::uint8_t* HWY_RESTRICT chunk, int p) {
  const U8 d;
  const std::uint8_t* at = chunk + p * (64 / kParts);
  if constexpr (kBits == 8) {
    return hn::LoadU(d, at + kStep * 64);
  } else if constexpr (kBits == 4) {
    const V8 block = hn::LoadU(d, at + kStep / 2 * 64);
    return hn::And(kStep % 2 == 0 ? block : shift_bytes_right<4>(block), hn::Set(d, 15));
  } else {
    const V8 block = hn::LoadU(d, at + kStep / 4 * 64);
    const V8 low = hn::And(shift_bytes_right<2 * (kStep % 4)>(block), hn::Set(d, 3));
    if constexpr (kBits == 2) return low;
    const V8 third = hn::LoadU(d, at + 128);
    const V8 moved = kStep < 2 ? shift_bytes_left < kStep<2 ? 2 - kStep : 0>(third)
                               : shift_bytes_right < kStep<2 ? 0 : kStep - 2>(third);
    return hn::Or(low, hn::And(moved, hn::Set(d, 4)));
  }
}

/// One tile: its codes and, per group, 16 scales and zeros.
struct Tile {
  const std::uint8_t* codes;
  const std::byte* scales;
  const std::byte* zeros;  // null: all are 2^(bits-1)
  std::int64_t first_row;
};

HWY_INLINE Tile tile_at(const IntTiles& w, std::int64_t tile) {
  const auto bytes = [](const Tensor& tensor) { return static_cast<const std::byte*>(tensor.view().data()); };
  const std::int64_t first_scale = tile * w.num_groups * kTileRows;
  return {static_cast<const std::uint8_t*>(w.codes.view().data()) + tile * w.tile_bytes(),
          bytes(w.scales) + first_scale * static_cast<std::int64_t>(size_bytes(w.scales.dtype())),
          w.is_symmetric() ? nullptr
                           : bytes(w.zeros) + first_scale * static_cast<std::int64_t>(size_bytes(w.zeros.dtype())),
          tile * kTileRows};
}

HWY_INLINE VF load_scales(const IntTiles& w, const Tile& tile, std::int64_t group, int p) {
  const std::int64_t at = group * kTileRows + p * kLanes;
  return w.scales.dtype() == DType::F16 ? load_float(reinterpret_cast<const hwy::float16_t*>(tile.scales) + at)
                                        : load_float(reinterpret_cast<const float*>(tile.scales) + at);
}

HWY_INLINE VI load_zeros(const IntTiles& w, const Tile& tile, std::int64_t group, int p) {
  const I32 di;
  if (tile.zeros == nullptr) return hn::Set(di, 1 << (w.bits - 1));
  const std::int64_t at = group * kTileRows + p * kLanes;
  if (w.zeros.dtype() == DType::U8) {
    const hn::Rebind<std::uint8_t, F32> d8;
    return hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(tile.zeros) + at));
  }
  const hn::Rebind<std::int16_t, F32> d16;
  return hn::PromoteTo(di, hn::LoadU(d16, reinterpret_cast<const std::int16_t*>(tile.zeros) + at));
}

HWY_INLINE VI broadcast_quad(const std::int8_t* from) {
  std::int32_t quad;
  std::memcpy(&quad, from, sizeof(quad));
  return hn::Set(I32(), quad);
}

/// Sums of one group: codes times the high and the low parts of each token's integers.
template <int kTokens>
struct GroupSums {
  VI high[kTokens][kParts];
  VI low[kTokens][kParts];
};

template <int kBits, bool kNarrow, int kTokens, int kStep>
HWY_INLINE void multiply_step(const std::uint8_t* HWY_RESTRICT chunk, const std::int8_t* const (&x)[kTokens],
                              std::int64_t low_offset, GroupSums<kTokens>& sums) {
  V8 codes[kParts];
  for (int p = 0; p < kParts; ++p) codes[p] = unpack_step<kBits, kStep>(chunk, p);
  for (int t = 0; t < kTokens; ++t) {
    const VI high = broadcast_quad(x[t] + 4 * kStep);
    const VI low = broadcast_quad(x[t] + low_offset + 4 * kStep);
    for (int p = 0; p < kParts; ++p) {
      sums.high[t][p] = dot_quads<kNarrow>(sums.high[t][p], codes[p], high);
      sums.low[t][p] = dot_quads<kNarrow>(sums.low[t][p], codes[p], low);
    }
  }
}

template <int kBits, bool kNarrow, int kTokens>
HWY_INLINE void multiply_chunk(const std::uint8_t* HWY_RESTRICT chunk, const std::int8_t* const (&x)[kTokens],
                               std::int64_t low_offset, GroupSums<kTokens>& sums) {
  multiply_step<kBits, kNarrow, kTokens, 0>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 1>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 2>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 3>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 4>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 5>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 6>(chunk, x, low_offset, sums);
  multiply_step<kBits, kNarrow, kTokens, 7>(chunk, x, low_offset, sums);
}

/// Tiles follow one another in memory. The hardware's streams stop at every 4 KiB page, which is a tile or two: asking
/// for what lies a page ahead keeps enough misses in flight.
template <int kBits>
HWY_INLINE void prefetch_chunk(const std::uint8_t* chunk) {
  for (int line = 0; line < kBits; ++line) hwy::Prefetch(chunk + 4096 + line * 64);
}

/// One tile against kTokens tokens. kBits is how `tile.codes` is stored, 8 for an unpacked panel.
template <int kBits, bool kNarrow, int kTokens>
HWY_INLINE void int_block(const IntTiles& w, const Tile& tile, const IntRows& x, std::int64_t first_token,
                          std::span<const float> bias, Matrix<float> y) {
  const F32 d;
  const I32 di;
  const std::int64_t num_groups = x.num_groups();
  const std::int64_t group_chunks = x.group_size / kChunk;
  const std::uint8_t* HWY_RESTRICT chunk = tile.codes;
  const std::int8_t* x_rows[kTokens];
  for (int t = 0; t < kTokens; ++t) x_rows[t] = x.high(first_token + t);
  const float* x_scales = x.scales + first_token * num_groups;
  const std::int32_t* x_sums = x.sums + first_token * num_groups;
  VF results[kTokens][kParts];
  for (auto& token : results) {
    for (auto& part : token) part = hn::Zero(d);
  }
  std::int64_t g = 0;
  for (const GroupSegment& segment : w.segments) {
    VF scales[kParts];
    VI zeros[kParts];
    for (int p = 0; p < kParts; ++p) {
      scales[p] = load_scales(w, tile, segment.group, p);
      zeros[p] = load_zeros(w, tile, segment.group, p);
    }
    for (; g * x.group_size < segment.end; ++g) {
      GroupSums<kTokens> sums;
      for (int t = 0; t < kTokens; ++t) {
        for (int p = 0; p < kParts; ++p) sums.high[t][p] = sums.low[t][p] = hn::Zero(di);
      }
      for (std::int64_t c = 0; c < group_chunks; ++c, chunk += 64 * kBits) {
        if constexpr (kTokens <= 4) prefetch_chunk<kBits>(chunk);
        multiply_chunk<kBits, kNarrow, kTokens>(chunk, x_rows, x.width, sums);
        for (auto& row : x_rows) row += kChunk;
      }
      for (int t = 0; t < kTokens; ++t) {
        const VF x_scale = hn::Set(d, x_scales[t * num_groups + g]);
        const VI x_sum = hn::Set(di, x_sums[t * num_groups + g]);
        for (int p = 0; p < kParts; ++p) {
          // Exact: below 2^30 even for 128 inputs of 8 bits. Rounded once, when it becomes f32.
          const VI total = hn::Add(hn::ShiftLeft<7>(sums.high[t][p]), sums.low[t][p]);
          const VF centred = hn::ConvertTo(d, hn::Sub(total, hn::Mul(zeros[p], x_sum)));
          results[t][p] = hn::MulAdd(centred, hn::Mul(scales[p], x_scale), results[t][p]);
        }
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    store_tile_rows(results[t], tile.first_row, w.out_features, bias, y.row(first_token + t));
  }
}

// Two sums and a result a token: 4 tokens fill half of AVX-512's registers, 2 (of two vectors) most of AVX2's.
inline constexpr int kMaxIntTokens = kParts == 1 ? 4 : 2;

template <int kBits, bool kNarrow>
void int_all_tokens(const IntTiles& w, const Tile& tile, const IntRows& x, std::span<const float> bias,
                    Matrix<float> y) {
  std::int64_t t = 0;
  if constexpr (kMaxIntTokens >= 4) {
    for (; t + 4 <= x.num_tokens; t += 4) int_block<kBits, kNarrow, 4>(w, tile, x, t, bias, y);
  }
  for (; t + 2 <= x.num_tokens; t += 2) int_block<kBits, kNarrow, 2>(w, tile, x, t, bias, y);
  for (; t < x.num_tokens; ++t) int_block<kBits, kNarrow, 1>(w, tile, x, t, bias, y);
}

template <int kBits, int kStep>
HWY_INLINE void unpack_step_to(const std::uint8_t* HWY_RESTRICT chunk, std::uint8_t* HWY_RESTRICT to) {
  for (int p = 0; p < kParts; ++p) {
    hn::StoreU(unpack_step<kBits, kStep>(chunk, p), U8(), to + kStep * 64 + p * (64 / kParts));
  }
}

/// A tile's codes as bytes: what the same tile would look like at 8 bits.
template <int kBits>
void unpack_tile(const IntTiles& w, const std::uint8_t* HWY_RESTRICT codes, std::uint8_t* HWY_RESTRICT to) {
  for (std::int64_t c = 0; c < w.num_chunks(); ++c, codes += 64 * kBits, to += 512) {
    unpack_step_to<kBits, 0>(codes, to);
    unpack_step_to<kBits, 1>(codes, to);
    unpack_step_to<kBits, 2>(codes, to);
    unpack_step_to<kBits, 3>(codes, to);
    unpack_step_to<kBits, 4>(codes, to);
    unpack_step_to<kBits, 5>(codes, to);
    unpack_step_to<kBits, 6>(codes, to);
    unpack_step_to<kBits, 7>(codes, to);
  }
}

void unpack_codes_of(const IntTiles& w, const Tile& tile, std::uint8_t* HWY_RESTRICT to) {
  switch (w.bits) {
    case 2: return unpack_tile<2>(w, tile.codes, to);
    case 3: return unpack_tile<3>(w, tile.codes, to);
    case 4: return unpack_tile<4>(w, tile.codes, to);
    default: return unpack_tile<8>(w, tile.codes, to);
  }
}

bool target_goes_with_amx() {
  return HWY_TARGET == HWY_AVX3_DL;
}

template <int kBits, int kStep>
HWY_INLINE void unpack_signed_step(const std::uint8_t* HWY_RESTRICT chunk, const V8 (&zeros)[kParts],
                                   std::uint8_t* HWY_RESTRICT to) {
  for (int p = 0; p < kParts; ++p) {
    hn::StoreU(hn::Sub(unpack_step<kBits, kStep>(chunk, p), zeros[p]), U8(), to + kStep * 64 + p * (64 / kParts));
  }
}

template <int kBits>
void unpack_signed(const IntTiles& w, const Tile& tile, std::uint8_t* HWY_RESTRICT to) {
  const I32 d;
  const std::uint8_t* HWY_RESTRICT chunk = tile.codes;
  std::int64_t k = 0;
  for (const GroupSegment& segment : w.segments) {
    V8 zeros[kParts];  // the row's zero in each of a lane's four bytes
    for (int p = 0; p < kParts; ++p) {
      const VI zero = load_zeros(w, tile, segment.group, p);
      zeros[p] = hn::BitCast(U8(), hn::Mul(zero, hn::Set(d, 0x01010101)));
    }
    for (; k < segment.end; k += kChunk, chunk += 64 * kBits, to += 512) {
      unpack_signed_step<kBits, 0>(chunk, zeros, to);
      unpack_signed_step<kBits, 1>(chunk, zeros, to);
      unpack_signed_step<kBits, 2>(chunk, zeros, to);
      unpack_signed_step<kBits, 3>(chunk, zeros, to);
      unpack_signed_step<kBits, 4>(chunk, zeros, to);
      unpack_signed_step<kBits, 5>(chunk, zeros, to);
      unpack_signed_step<kBits, 6>(chunk, zeros, to);
      unpack_signed_step<kBits, 7>(chunk, zeros, to);
    }
  }
}

/// A tile's codes minus their zeros, as signed bytes. The differences must fit (all but asymmetric 8 bits do) and
/// groups be whole chunks.
void unpack_signed_tile(const IntTiles& w, std::int64_t tile_idx, std::uint8_t* HWY_RESTRICT to) {
  const Tile tile = tile_at(w, tile_idx);
  switch (w.bits) {
    case 2: return unpack_signed<2>(w, tile, to);
    case 3: return unpack_signed<3>(w, tile, to);
    case 4: return unpack_signed<4>(w, tile, to);
    default: return unpack_signed<8>(w, tile, to);
  }
}

template <int kBits>
void int_tiles_of(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, const IntRows& x,
                  std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  auto* panel = reinterpret_cast<std::uint8_t*>(scratch);
  for (std::int64_t i = 0; i < num_tiles; ++i) {
    Tile tile = tile_at(w, first_tile + i);
    if (kBits == 8 || x.num_tokens <= kMaxIntTokens) {
      int_all_tokens<kBits, kBits != 8>(w, tile, x, bias, y);
      continue;
    }
    unpack_tile<kBits>(w, tile.codes, panel);
    tile.codes = panel;
    int_all_tokens<8, kBits != 8>(w, tile, x, bias, y);
  }
}

void int_tiles(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, const IntRows& x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  switch (w.bits) {
    case 2: return int_tiles_of<2>(w, first_tile, num_tiles, x, bias, y, scratch);
    case 3: return int_tiles_of<3>(w, first_tile, num_tiles, x, bias, y, scratch);
    case 4: return int_tiles_of<4>(w, first_tile, num_tiles, x, bias, y, scratch);
    case 8: return int_tiles_of<8>(w, first_tile, num_tiles, x, bias, y, scratch);
    default: check(false, "integer tiles of other bits");
  }
}

/// panel[k][row] = scale * (code - zero), as weights::dequantize computes it.
void dequantize_tile(const IntTiles& w, const Tile& tile, std::uint8_t* HWY_RESTRICT bytes, float* HWY_RESTRICT panel) {
  const F32 d;
  const I32 di;
  unpack_codes_of(w, tile, bytes);
  for (const GroupSegment& segment : w.segments) {
    for (int p = 0; p < kParts; ++p) {
      const VF scale = load_scales(w, tile, segment.group, p);
      const VF zero = hn::ConvertTo(d, load_zeros(w, tile, segment.group, p));
      for (std::int64_t k = segment.begin; k < segment.end; ++k) {
        // A 32-bit lane holds four inputs of a row; shift the wanted one down.
        const auto quads =
            hn::BitCast(hn::RebindToUnsigned<I32>(), hn::LoadU(U8(), bytes + k / 4 * 64 + p * (64 / kParts)));
        const auto shifted = hn::BitCast(di, hn::ShiftRightSame(quads, static_cast<int>(k % 4) * 8));
        const VF code = hn::ConvertTo(d, hn::And(shifted, hn::Set(di, 255)));
        hn::StoreU(hn::Mul(scale, hn::Sub(code, zero)), d, panel + k * kTileRows + p * kLanes);
      }
    }
  }
}

void int_tiles_exact(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                     std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  auto* panel = reinterpret_cast<float*>(scratch);
  auto* bytes = reinterpret_cast<std::uint8_t*>(panel + w.in_features * kTileRows);
  for (std::int64_t i = 0; i < num_tiles; ++i) {
    const Tile tile = tile_at(w, first_tile + i);
    dequantize_tile(w, tile, bytes, panel);
    dense_panel<float>(panel, 1, tile.first_row, w.out_features, x, {{}, bias}, y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(int_tiles);
HWY_EXPORT(int_tiles_exact);
HWY_EXPORT(unpack_signed_tile);
HWY_EXPORT(target_goes_with_amx);

namespace {

// Below this the vector kernels win: they read 4-bit codes once, where the tile unit wants them unpacked first.
constexpr std::int64_t kAmxMinTokens = 5;

bool amx_can_run(const IntTiles& w, const IntRows& x) {
  const bool differences_fit = w.bits < 8 || w.is_symmetric();
  return differences_fit && x.num_tokens >= kAmxMinTokens && amx_is_allowed();
}

std::size_t panel_bytes(const IntTiles& w) {
  return static_cast<std::size_t>(w.num_chunks() * kChunk * kTileRows);
}

// Panels that one block of tokens meets: as many as stay in L2 beside the activations.
constexpr std::int64_t kMaxAmxPanels = 16;
std::int64_t num_amx_panels(const IntTiles& w) {
  constexpr std::size_t kPanelCache = 256 * 1024;
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(kPanelCache / panel_bytes(w)), 1, kMaxAmxPanels);
}

void int_tiles_by_amx(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, const IntRows& x,
                      std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  const auto* scales = static_cast<const std::byte*>(w.scales.view().data());
  const auto scale_bytes = w.num_groups * kTileRows * static_cast<std::int64_t>(size_bytes(w.scales.dtype()));
  SignedPanel panels[kMaxAmxPanels];
  const std::int64_t step = num_amx_panels(w);
  std::byte* amx_scratch = scratch + static_cast<std::size_t>(step) * panel_bytes(w);
  for (std::int64_t first = 0; first < num_tiles; first += step) {
    const std::int64_t count = std::min(step, num_tiles - first);
    std::byte* values = scratch;
    for (std::int64_t i = 0; i < count; ++i, values += panel_bytes(w)) {
      const std::int64_t tile = first_tile + first + i;
      HWY_DYNAMIC_DISPATCH(unpack_signed_tile)(w, tile, reinterpret_cast<std::uint8_t*>(values));
      panels[i] = {.values = reinterpret_cast<const std::int8_t*>(values),
                   .scales = scales + tile * scale_bytes,
                   .first_row = tile * kTileRows};
    }
    amx_tiles(w, {panels, static_cast<std::size_t>(count)}, x, bias, y, amx_scratch);
  }
  amx_release();
}

}  // namespace

void int_tiles(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, const IntRows& x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  if (amx_can_run(w, x)) {
    int_tiles_by_amx(w, first_tile, num_tiles, x, bias, y, scratch);
  } else {
    HWY_DYNAMIC_DISPATCH(int_tiles)(w, first_tile, num_tiles, x, bias, y, scratch);
  }
}

std::size_t int_scratch_bytes(const IntTiles& w) {
  return static_cast<std::size_t>(num_amx_panels(w)) * panel_bytes(w) + amx_scratch_bytes(w.num_chunks());
}

void int_tiles_exact(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                     std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(int_tiles_exact)(w, first_tile, num_tiles, x, bias, y, scratch);
}

std::size_t int_exact_scratch_bytes(const IntTiles& w) {
  return panel_bytes(w) * (sizeof(float) + 1);
}

bool amx_is_allowed() {
  // A test that hides AVX-512 hides the tile unit too. (Asking Highway for its targets costs a cpuid, which traps on
  // virtual machines; the dispatch table is a load.)
  static const bool is_available = amx_is_available();
  return is_available && HWY_DYNAMIC_DISPATCH(target_goes_with_amx)();
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
