// Regime: prefill, M > kAmxMinTokens. Layout in: 16 output rows x K as signed bytes, four inputs of a row together
// (exactly a B tile), and int8 activations row-major (exactly an A tile). A group of 64 inputs is one tile
// multiplication of 16 cycles into 16 tokens x 16 rows of int32; turning those into f32 and adding them, scaled, to
// sums that stay in 16 vector registers costs about 30 cycles more and sets the ceiling: 500 multiply-adds a cycle.
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
constexpr std::size_t kResultBytes = 2 * 1024;  // two tiles of sums

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

// Tiles 0, 1: sums of two consecutive groups. 2, 3: activations. 4, 5: weights.
NIBBLE_AMX void configure(std::int64_t num_tokens, std::int64_t group_size) {
  TileConfig config;
  for (int i = 0; i < 2; ++i) {
    config.row_bytes[i] = 64;
    config.num_rows[i] = static_cast<std::uint8_t>(num_tokens);
    config.row_bytes[2 + i] = static_cast<std::uint16_t>(group_size);
    config.num_rows[2 + i] = static_cast<std::uint8_t>(num_tokens);
    config.row_bytes[4 + i] = 64;
    config.num_rows[4 + i] = static_cast<std::uint8_t>(group_size / 4);
  }
  // g++ 12's intrinsic names only the first bytes of its operand as read; the rest would be optimised away.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

NIBBLE_AMX inline __m512 load_scales(const IntTiles& w, const SignedPanel& panel, std::int64_t group) {
  if (w.scales.dtype() == DType::F16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.scales + group * kTileRows * 2)));
  }
  return _mm512_loadu_ps(reinterpret_cast<const float*>(panel.scales) + group * kTileRows);
}

/// results[t] += float(sums[t]) * (scales * x_scales[t])
template <int kNumTokens>
NIBBLE_AMX inline void add_group(const std::byte* sums, __m512 scales, const float* x_scales,
                                 __m512 (&results)[kNumTokens]) {
#pragma GCC unroll 16  // so that the sums are registers, not an array
  for (int t = 0; t < kNumTokens; ++t) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + t * 64));
    results[t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[t])), results[t]);
  }
}

/// kNumTokens tokens (16, or as many as are left) from `first_token`. x_scales [num_groups, 16]: theirs.
template <int kNumTokens>
NIBBLE_AMX void token_block(const IntTiles& w, const SignedPanel& panel, const Int8Rows& x, const float* x_scales,
                            std::int64_t first_token, std::span<const float> bias, Matrix<float> y,
                            std::byte* scratch) {
  const std::int64_t panel_step = x.group_size * kTileRows;
  const std::int8_t* values = panel.values;
  const std::int8_t* x_values = x.values + first_token * x.width;
  __m512 results[kNumTokens];
  for (auto& result : results) result = _mm512_setzero_ps();
  std::int64_t g = 0;
  for (const GroupSegment& segment : w.segments) {
    const __m512 scales = load_scales(w, panel, segment.group);
    const std::int64_t end = segment.end / x.group_size;
    // Two groups at a time, in separate tiles and buffers: one is multiplied while the other is added up.
    for (; g + 2 <= end; g += 2) {
      _tile_zero(0);
      _tile_loadd(2, x_values + g * x.group_size, x.width);
      _tile_loadd(4, values + g * panel_step, 64);
      _tile_dpbssd(0, 2, 4);
      _tile_zero(1);
      _tile_loadd(3, x_values + (g + 1) * x.group_size, x.width);
      _tile_loadd(5, values + (g + 1) * panel_step, 64);
      _tile_dpbssd(1, 3, 5);
      _tile_stored(0, scratch, 64);
      add_group(scratch, scales, x_scales + g * kTokens, results);
      _tile_stored(1, scratch + 1024, 64);
      add_group(scratch + 1024, scales, x_scales + (g + 1) * kTokens, results);
    }
    for (; g < end; ++g) {
      _tile_zero(0);
      _tile_loadd(2, x_values + g * x.group_size, x.width);
      _tile_loadd(4, values + g * panel_step, 64);
      _tile_dpbssd(0, 2, 4);
      _tile_stored(0, scratch, 64);
      add_group(scratch, scales, x_scales + g * kTokens, results);
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

using TokenBlock = void (*)(const IntTiles&, const SignedPanel&, const Int8Rows&, const float*, std::int64_t,
                            std::span<const float>, Matrix<float>, std::byte*);

template <std::size_t... kNumTokens>
constexpr std::array<TokenBlock, sizeof...(kNumTokens)> make_blocks(std::index_sequence<kNumTokens...>) {
  return {token_block<static_cast<int>(kNumTokens) + 1>...};
}

/// By number of tokens less one: a block's sums are registers, so their number is a constant.
constexpr auto kTokenBlocks = make_blocks(std::make_index_sequence<kTokens>());

/// Scales of some tokens with the group outermost, so that a group's lie side by side.
void transpose_scales(const Int8Rows& x, std::int64_t first_token, std::int64_t num_tokens, float* to) {
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

void amx_tiles(const IntTiles& w, std::span<const SignedPanel> panels, const Int8Rows& x, std::span<const float> bias,
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
void amx_tiles(const IntTiles&, std::span<const SignedPanel>, const Int8Rows&, std::span<const float>, Matrix<float>,
               std::byte*) {
  check(false, "the tile unit is x86's");
}
std::size_t amx_scratch_bytes(std::int64_t) {
  return 0;
}
void amx_release() {}

}  // namespace nibble::backend::cpu

#endif
