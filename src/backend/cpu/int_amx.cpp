// Regime: prefill, M >= kAmxMinTokens. Layout in: 16 output rows x K as signed bytes, four inputs of a row together
// (exactly a B tile), and two planes of int8 activations, row-major (exactly A tiles). A group of 64 inputs is two tile
// multiplications of 16 cycles into 16 tokens x 16 rows of int32; turning those into f32 and adding them, scaled, to
// sums that stay in 16 vector registers costs about 40 cycles beside them and sets the ceiling: 400 multiply-adds a
// cycle, against 64 with AVX-512 VNNI.
#include "backend/cpu/int_amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

namespace nibble::backend::cpu {
namespace {

#define NIBBLE_AMX __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,f16c,fma")))

constexpr std::int64_t kTokens = 16;
constexpr std::size_t kResultBytes = 4 * 1024;  // four tiles of sums

bool cpu_has_int8_tiles() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxTile = 1u << 24;
  constexpr unsigned kAmxInt8 = 1u << 25;
  return (d & kAmxTile) != 0 && (d & kAmxInt8) != 0 && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool ask_for_tile_state() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

/// LDTILECFG's operand (Intel SDM, "Tile configuration").
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t num_rows[16] = {};
};

// Inputs of one tile multiplication: a whole group of 32 or 64, half a group of 128.
std::int64_t tile_inputs(std::int64_t group_size) {
  return std::min<std::int64_t>(group_size, 64);
}

// Tiles 0 … 3: sums (high, low) of two consecutive groups. 4, 5: activations (high, low). 6: weights.
NIBBLE_AMX void configure(std::int64_t num_tokens, std::int64_t group_size) {
  TileConfig config;
  for (int i = 0; i < 6; ++i) {
    config.row_bytes[i] = static_cast<std::uint16_t>(i < 4 ? 64 : tile_inputs(group_size));
    config.num_rows[i] = static_cast<std::uint8_t>(num_tokens);
  }
  config.row_bytes[6] = 64;
  config.num_rows[6] = static_cast<std::uint8_t>(tile_inputs(group_size) / 4);
  // g++ 12's intrinsic names only the first bytes of its operand as read; the rest would be optimised away.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

/// A group's activations and weights.
struct Group {
  const std::int8_t* high;
  const std::int8_t* low;
  std::int64_t stride;  // bytes from one token to the next
  const std::int8_t* weights;
  std::int64_t size;
};

// Tile numbers are part of the instruction, hence one function for each pair of sums.
NIBBLE_AMX inline void multiply_even_group(const Group& group) {
  _tile_zero(0);
  _tile_zero(1);
  for (std::int64_t k = 0; k < group.size; k += 64) {
    _tile_loadd(6, group.weights + k * kTileRows, 64);
    _tile_loadd(4, group.high + k, group.stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, group.low + k, group.stride);
    _tile_dpbssd(1, 5, 6);
  }
}

NIBBLE_AMX inline void multiply_odd_group(const Group& group) {
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t k = 0; k < group.size; k += 64) {
    _tile_loadd(6, group.weights + k * kTileRows, 64);
    _tile_loadd(4, group.high + k, group.stride);
    _tile_dpbssd(2, 4, 6);
    _tile_loadd(5, group.low + k, group.stride);
    _tile_dpbssd(3, 5, 6);
  }
}

NIBBLE_AMX inline __m512 load_scales(const IntTiles& w, const SignedPanel& panel, std::int64_t group) {
  if (w.scales.dtype() == DType::F16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.scales + group * kTileRows * 2)));
  }
  return _mm512_loadu_ps(reinterpret_cast<const float*>(panel.scales) + group * kTileRows);
}

/// results[t] += float(128 * high[t] + low[t]) * (scales * x_scales[t]); `sums`: 16 rows of high, then of low.
template <int kNumTokens>
NIBBLE_AMX inline void add_group(const std::byte* sums, __m512 scales, const float* x_scales,
                                 __m512 (&results)[kNumTokens]) {
#pragma GCC unroll 16  // so that the sums are registers, not an array
  for (int t = 0; t < kNumTokens; ++t) {
    const __m512i high = _mm512_slli_epi32(_mm512_load_si512(sums + t * 64), 7);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(high, _mm512_load_si512(sums + 1024 + t * 64)));
    results[t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[t])), results[t]);
  }
}

/// kNumTokens tokens (16, or as many as are left) from `first_token`. x_scales [num_groups, 16]: theirs.
template <int kNumTokens>
NIBBLE_AMX void token_block(const IntTiles& w, const SignedPanel& panel, const IntRows& x, const float* x_scales,
                            std::int64_t first_token, std::span<const float> bias, Matrix<float> y,
                            std::byte* scratch) {
  const std::int8_t* high = x.high(first_token);
  const auto group_at = [&](std::int64_t g) {
    const std::int64_t k = g * x.group_size;
    return Group{high + k, high + x.width + k, 2 * x.width, panel.values + k * kTileRows, x.group_size};
  };
  __m512 results[kNumTokens];
  for (auto& result : results) result = _mm512_setzero_ps();
  std::int64_t g = 0;
  for (const GroupSegment& segment : w.segments) {
    const __m512 scales = load_scales(w, panel, segment.group);
    const std::int64_t end = segment.end / x.group_size;
    for (; g < end; ++g) {
      // Consecutive groups take separate tiles and buffers: one is multiplied while the other is added up.
      std::byte* sums = scratch + g % 2 * 2048;
      if (g % 2 == 0) {
        multiply_even_group(group_at(g));
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 1024, 64);
      } else {
        multiply_odd_group(group_at(g));
        _tile_stored(2, sums, 64);
        _tile_stored(3, sums + 1024, 64);
      }
      add_group(sums, scales, x_scales + g * kTokens, results);
    }
  }
  const std::int64_t num_rows = std::min(kTileRows, w.out_features - panel.first_row);
  const auto mask = static_cast<__mmask16>((1u << num_rows) - 1);
  const __m512 offset = bias.empty() ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, bias.data() + panel.first_row);
  for (int t = 0; t < kNumTokens; ++t) {
    const __m512 result = bias.empty() ? results[t] : _mm512_add_ps(results[t], offset);
    _mm512_mask_storeu_ps(y.row(first_token + t) + panel.first_row, mask, result);
  }
}

using TokenBlock = void (*)(const IntTiles&, const SignedPanel&, const IntRows&, const float*, std::int64_t,
                            std::span<const float>, Matrix<float>, std::byte*);

template <std::size_t... kNumTokens>
constexpr std::array<TokenBlock, sizeof...(kNumTokens)> make_blocks(std::index_sequence<kNumTokens...>) {
  return {token_block<static_cast<int>(kNumTokens) + 1>...};
}

/// By number of tokens less one: a block's sums are registers, so their number is a constant.
constexpr auto kTokenBlocks = make_blocks(std::make_index_sequence<kTokens>());

/// Scales of some tokens with the group outermost, so that a group's lie side by side.
void transpose_scales(const IntRows& x, std::int64_t first_token, std::int64_t num_tokens, float* to) {
  const std::int64_t num_groups = x.num_groups();
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* from = x.scales + (first_token + t) * num_groups;
    for (std::int64_t g = 0; g < num_groups; ++g) to[g * kTokens + t] = from[g];
  }
}

}  // namespace

bool amx_is_available() {
  static const bool is_available = cpu_has_int8_tiles() && ask_for_tile_state();
  return is_available;
}

void amx_tiles(const IntTiles& w, std::span<const SignedPanel> panels, const IntRows& x, std::span<const float> bias,
               Matrix<float> y, std::byte* scratch) {
  auto* x_scales = reinterpret_cast<float*>(scratch + kResultBytes);
  for (std::int64_t t = 0; t < x.num_tokens; t += kTokens) {
    const std::int64_t num_tokens = std::min(kTokens, x.num_tokens - t);
    if (t == 0 || num_tokens < kTokens) configure(num_tokens, x.group_size);
    transpose_scales(x, t, num_tokens, x_scales);
    const TokenBlock block = kTokenBlocks[static_cast<std::size_t>(num_tokens - 1)];
    for (const SignedPanel& panel : panels) block(w, panel, x, x_scales, t, bias, y, scratch);
  }
}

std::size_t amx_scratch_bytes(std::int64_t num_groups) {
  return kResultBytes + static_cast<std::size_t>(num_groups * kTokens) * sizeof(float);
}

NIBBLE_AMX void amx_release() {
  _tile_release();
}

}  // namespace nibble::backend::cpu

#else

namespace nibble::backend::cpu {

bool amx_is_available() {
  return false;
}
void amx_tiles(const IntTiles&, std::span<const SignedPanel>, const IntRows&, std::span<const float>, Matrix<float>,
               std::byte*) {
  check(false, "the tile unit is x86's");
}
std::size_t amx_scratch_bytes(std::int64_t) {
  return 0;
}
void amx_release() {}

}  // namespace nibble::backend::cpu

#endif
