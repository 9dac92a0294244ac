#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

/// How this backend keeps weights and activations in memory. One layout serves every SIMD target: the kernels look at
/// a tile of 16 output rows through vectors of 4, 8 or 16 lanes, one lane an output row (but for codebooks, whose
/// tables are a row's own), and lanes are added in one fixed way, so a row's order of additions over K is the same for
/// every batch size, target width and thread count.
namespace nibble::backend::cpu {

/// Output rows of a tile.
inline constexpr std::int64_t kTileRows = 16;
/// Inputs that integer codes are packed by.
inline constexpr std::int64_t kChunk = 32;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Dense weights, transposed within a tile: weight(tile * 16 + r, k) is values[(tile * in_features + k) * 16 + r].
/// Rows beyond out_features are zero.
struct DenseTiles {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  DType dtype = DType::F32;  // F32, F16 or BF16
  Tensor values;             // [num_tiles, in_features, 16]

  std::int64_t num_tiles() const { return ceil_div(out_features, kTileRows); }
};

/// What a code is short of as the kernels read it: E4M3's exponent has bias 7, f16's 15.
inline constexpr float kFp8CodeScale = 256;

/// E4M3 weights, transposed within a tile like DenseTiles. Scales are multiplied by kFp8CodeScale.
///
/// codes   f8_e4m3 [num_tiles, in_features, 16]
/// scales  f32 [num_tiles * 16] per row, or [ceil(out/block), ceil(in/block)] where block_size is not 0
struct Fp8Tiles {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::int64_t block_size = 0;  // a multiple of 16
  Tensor codes;
  Tensor scales;

  std::int64_t num_tiles() const { return ceil_div(out_features, kTileRows); }
};

/// A run of inputs that share a scale and a zero.
struct GroupSegment {
  std::int64_t begin = 0;  // first input
  std::int64_t end = 0;
  std::int64_t group = 0;
};

/// Integer weights by tile. A chunk is 16 rows x 32 inputs in 64 * bits bytes, made of 64-byte blocks; byte 4r + i of a
/// block belongs to row r. With step s = inputs 4s … 4s+3 of the chunk, i = input within the step:
///   8 bits  block s holds the code
///   4 bits  block s/2, low nibble for even s, high nibble for odd
///   2 bits  block s/4, bits 2(s%4) … 2(s%4)+1
///   3 bits  two blocks as for 2 bits with the low two bits of each code, then one block whose bit s is the third
///
/// codes   u8 [num_tiles, num_chunks, 64 * bits]
/// scales  f16 (where exact) or f32 [num_tiles, num_groups, 16]
/// zeros   u8 (i16 for 8 bits) [num_tiles, num_groups, 16]; empty when all of them are 2^(bits-1)
/// Padding: rows have scale 0, inputs beyond in_features have code 0.
struct IntTiles {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::int32_t bits = 4;
  std::int64_t num_groups = 0;
  std::vector<GroupSegment> segments;  // of the packed (permuted) inputs, in order, covering [0, in_features)
  /// Inputs per activation scale when every segment is a whole number of them, else 0: then activations stay f32.
  std::int64_t activation_group = 0;
  Tensor codes;
  Tensor scales;
  Tensor zeros;

  std::int64_t num_tiles() const { return ceil_div(out_features, kTileRows); }
  std::int64_t num_chunks() const { return ceil_div(in_features, kChunk); }
  std::int64_t chunk_bytes() const { return 64 * std::int64_t{bits}; }
  std::int64_t tile_bytes() const { return num_chunks() * chunk_bytes(); }
  bool is_symmetric() const { return zeros.is_empty(); }
  std::int64_t size_bytes() const {
    return static_cast<std::int64_t>(codes.size_bytes() + scales.size_bytes() + zeros.size_bytes());
  }
};

/// Rows of a codebook part that lie together, block by block.
inline constexpr std::int64_t kCodebookRows = 8;
/// Codes that one 32-bit word holds, from its low end: one of each step.
constexpr int codebook_steps(std::int32_t bits) {
  return bits == 3 ? 10 : 8;
}

/// Weights in tables of their rows, with inputs in the lanes: a block of a row is 16 words of 32 bits, one a lane, and
/// step s of lane j holds the code of input 16 (num_steps block + s) + j.
///
/// codes   u8 [num_groups of 8 rows, num_blocks, 8 rows, 64]
/// tables  f16 or f32 [rows padded to whole tiles, 16]; 3 bits: the 8 entries twice
/// rows, cols, vals  CSR of the sparse part as in CodebookWeights; empty when dense
/// Padding: codes 0, tables 0.
struct CodebookTiles {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::int32_t bits = 4;
  Tensor codes;
  Tensor tables;
  Tensor rows;
  Tensor cols;
  Tensor vals;

  std::int64_t num_tiles() const { return ceil_div(out_features, kTileRows); }
  std::int64_t num_blocks() const { return ceil_div(in_features, kTileRows * codebook_steps(bits)); }
  std::int64_t group_bytes() const { return num_blocks() * kCodebookRows * 64; }
  std::int64_t size_bytes() const {
    return static_cast<std::int64_t>(codes.size_bytes() + tables.size_bytes() + rows.size_bytes() + cols.size_bytes() +
                                     vals.size_bytes());
  }
};

/// Activations as the integer kernels read them: x[t, k] = scales[t, g] * (128 * high[t, k] + low[t, k]), with
/// g = k / group_size. Eight bits alone would cost a KL of some 5e-3 on a small model; fifteen cost nothing, and
/// decode, which is bound by the weights' bytes, hardly notices the second dot product.
struct IntRows {
  const std::int8_t* planes = nullptr;  // [num_tokens, 2, width]: high, low
  const float* scales = nullptr;        // [num_tokens, width / group_size]
  const std::int32_t* sums = nullptr;   // [num_tokens, width / group_size]: sum of the group's integers
  std::int64_t num_tokens = 0;
  std::int64_t width = 0;
  std::int64_t group_size = 0;

  std::int64_t num_groups() const { return width / group_size; }
  const std::int8_t* high(std::int64_t token) const { return planes + token * 2 * width; }
};

}  // namespace nibble::backend::cpu
