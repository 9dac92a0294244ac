#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/layout.h"

/// The inner loops, each compiled for every SIMD target and chosen at run time. They allocate nothing, know no threads
/// and check nothing: their callers did. `scratch` is 64-byte aligned.
namespace nibble::backend::cpu {

/// Instruction set that the kernels below use on this machine ("AVX3_DL"), with " + AMX" where prefill takes it.
std::string simd_name();
/// Whether prefill takes the tile unit: it is there and no test has chosen a lesser target.
bool amx_is_allowed();

// ── Linears: y[t, row] = sum_k w[row, k] x[t, k] (+ bias) for the rows of tiles [first_tile, first_tile + num_tiles).
// `y` is the part's matrix [num_tokens, out_features]; `bias` is empty or has out_features elements.

/// K runs in order, one fused multiply-add an input.
void dense_tiles(const DenseTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                 std::span<const float> bias, Matrix<float> y);

/// As dense_tiles; the sum is multiplied by the row's scale, or each input by its block's scale. `scratch` has
/// fp8_scratch_bytes().
void fp8_tiles(const Fp8Tiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch);
std::size_t fp8_scratch_bytes(const Fp8Tiles& w);

/// Activation groups run in order. Each is an exact integer sum, then one fused multiply-add in f32, so every kernel
/// behind this call gives the same bits. `scratch` has int_scratch_bytes().
void int_tiles(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, const IntRows& x,
               std::span<const float> bias, Matrix<float> y, std::byte* scratch);
std::size_t int_scratch_bytes(const IntTiles& w);

/// The same weights in f32 against f32 activations, K in order. `scratch` has int_exact_scratch_bytes().
void int_tiles_exact(const IntTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                     std::span<const float> bias, Matrix<float> y, std::byte* scratch);
std::size_t int_exact_scratch_bytes(const IntTiles& w);

/// K in 16 lanes, each in order, added in one fixed tree; then the sparse part on its own, in order. `scratch` has
/// codebook_scratch_bytes().
void codebook_tiles(const CodebookTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                    std::span<const float> bias, Matrix<float> y, std::byte* scratch);
std::size_t codebook_scratch_bytes(const CodebookTiles& w);

// ── Rows of activations.

/// to[j] = from[j] (+ delta[j] where delta is not null); returns the sum of squares of `to`. May work in place.
float add_and_square(const float* from, const float* delta, std::int64_t width, float* to);
/// to = from * scale * weight
void scale_by_weight(const float* from, float scale, const float* weight, std::int64_t width, float* to);
/// to += delta
void add_row(const float* delta, std::int64_t width, float* to);
/// to = gate / (1 + exp(-gate)) * up
void silu_mul_row(const float* gate, const float* up, std::int64_t width, float* to);
/// Per group of `group_size`: scale = absmax / 16256, integers = round half to even(x / scale) as two planes (IntRows),
/// sum of integers. A NaN or infinity makes the group's scale NaN, so that it stays visible downstream.
void quantize_row(const float* from, std::int64_t width, std::int64_t group_size, std::int8_t* planes, float* scales,
                  std::int32_t* sums);
/// codes = cast(from / scale) in E4M3, clamped to ±448, round half to even; NaN stays NaN.
void narrow_row_to_fp8(const float* from, std::int64_t width, float scale, std::uint8_t* codes);
/// Largest magnitude; NaN where a value is NaN.
float absmax_of_row(const float* from, std::int64_t width);
/// Float values of `from` in `dtype` (F32, F16 or BF16), round half to even.
void narrow_row(const float* from, std::int64_t width, DType dtype, void* to);
/// x_j, x_{j+half} rotated by the pair's angle, in place, for j < half.
void rotate_pairs(float* x, const float* cosines, const float* sines, std::int64_t half);

// ── Attention.

/// One layer's cache and one kv head in it. Per block and head: keys transposed [head_dim, block_size], values
/// [block_size, padded_dim], zero beyond head_dim. block_size is a multiple of 16.
struct HeadCache {
  const std::byte* keys = nullptr;    // block 0, this head
  const std::byte* values = nullptr;  // block 0, this head
  std::int64_t block_stride = 0;      // elements from one block to the next
  std::int64_t block_size = 0;
  std::int64_t head_dim = 0;
  std::int64_t padded_dim = 0;
  DType dtype = DType::F16;
  float key_scale = 1;  // of 8-bit dtypes: key = code * key_scale
  float value_scale = 1;
};

/// Some consecutive query tokens of one sequence, for the query heads of one kv head.
struct AttentionTask {
  const float* queries = nullptr;  // first token, first head of the group
  float* out = nullptr;            // first token, first head of the group
  std::int64_t query_stride = 0;   // elements from one token to the next
  std::int64_t out_stride = 0;
  std::int64_t num_tokens = 0;
  std::int64_t first_position = 0;  // of the first token
  std::int64_t heads_per_kv = 0;
  std::int64_t sliding_window = 0;  // 0: full
  float scale = 1;
  const std::int32_t* block_table = nullptr;
};

/// Online softmax over the context in runs of kContextRun keys, in order; a query row's order does not depend on what
/// else is in the task. `scratch` has attention_scratch_bytes().
inline constexpr std::int64_t kContextRun = 128;
constexpr std::int64_t padded_head_dim(std::int64_t head_dim) {
  return ceil_div(head_dim, 16) * 16;
}
void attention_task(const AttentionTask& task, const HeadCache& cache, std::byte* scratch);
std::size_t attention_scratch_bytes(std::int64_t num_rows, std::int64_t head_dim);

}  // namespace nibble::backend::cpu
