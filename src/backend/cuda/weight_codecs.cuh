#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/packed_layout.h"
#include "backend/cuda/tensor_core.cuh"

/// How streaming kernels read each kind of weights: copy a block of 16 rows × 128 columns into a stage of shared
/// memory, and make A fragments of a lane's share (packed_layout.h) segment by segment. Fragments are f16: weights
/// divided by a scale which the kernel applies in f32, once per group of columns (kScalesGroups) or once per row.
///
/// A codec is a kernel parameter: pointers into device memory and a few sizes.
///   kStages                 blocks that a warp keeps under way
///   kWords                  words of a lane in a block
///   stage_bytes()           of one row tile
///   Cursor<kTiles>          where a lane copies from: the same block of consecutive row tiles
///   move_to, advance, copy  to the first block of a row tile, to the next block, start the copy; all lanes call them
///   lane_column, segment_column   a segment's eight columns of lane t begin at their sum
///   load(...)               a lane's words from its stage
///   fragments(...)          A of the segment's two products
namespace nibble::backend::cuda {

/// What codes of a group are measured by: lane rows g and g + 8.
struct GroupGrid {
  float scale[2] = {1, 1};
  __half2 offset[2];
};

/// Fragments of a segment, by product and register.
using Fragments = std::uint32_t[2][4];

/// Row tiles of blocks, each `block_bytes` with what travels behind its codes.
struct PackedBlocks {
  const std::byte* blocks;  // [num_tiles, num_blocks, block_bytes]
  std::int32_t num_blocks;
  std::int32_t block_bytes;

  __device__ const std::byte* block(int tile, int block) const {
    return blocks + (static_cast<std::int64_t>(tile) * num_blocks + block) * block_bytes;
  }
  __device__ std::int64_t tile_bytes() const { return static_cast<std::int64_t>(num_blocks) * block_bytes; }
};

/// The natural order of columns.
struct NaturalColumns {
  __device__ static constexpr int lane_column(int t) { return 8 * t; }
  __device__ static constexpr int segment_column(int segment) { return kSegmentCols * segment; }
};

/// Copies of `size_bytes`, a multiple of 16, by all lanes; `from` is the lane's first vector.
__device__ inline void warp_copy(std::byte* to, const std::byte* from, int size_bytes, int lane) {
#pragma unroll
  for (int offset = 0; offset < size_bytes; offset += 512) {
    if (offset + 512 <= size_bytes || offset + 16 * lane < size_bytes) {
      vector_copy(to + offset + 16 * lane, from + offset);
    }
  }
}

/// A lane's words of a packed block.
template <int kBits>
__device__ inline void load_lane_words(const std::byte* stage, int lane, std::uint32_t (&words)[lane_words(kBits)]) {
  constexpr int kVector = kBits == 3 ? 2 : 4;
#pragma unroll
  for (int w = 0; w < lane_words(kBits); w += kVector) {
    const std::byte* from = stage + word_offset(kBits, lane, w);
    if constexpr (kVector == 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(from);
      words[w] = two.x;
      words[w + 1] = two.y;
    } else {
      const uint4 four = *reinterpret_cast<const uint4*>(from);
      words[w] = four.x;
      words[w + 1] = four.y;
      words[w + 2] = four.z;
      words[w + 3] = four.w;
    }
  }
}

/// The segment's codes of up to four bits as two words of nibbles, one a product. Bits beside a code are not cleared.
template <int kBits>
__device__ inline void nibble_words(const std::uint32_t (&words)[lane_words(kBits)], int segment,
                                    std::uint32_t (&nibbles)[2]) {
  if constexpr (kBits == 4) {
    nibbles[0] = words[2 * segment];
    nibbles[1] = words[2 * segment + 1];
  } else if constexpr (kBits == 2) {
    nibbles[0] = words[segment];
    nibbles[1] = words[segment] >> 2;
  } else {
    const int first = 3 * (segment / 2);
    if (segment % 2 == 0) {
      nibbles[0] = words[first];
      nibbles[1] = words[first + 1];
    } else {
      nibbles[0] = words[first + 2];
      nibbles[1] = ((words[first] >> 3) & 0x11111111U) | ((words[first + 1] >> 2) & 0x22222222U) |
                   ((words[first + 2] >> 1) & 0x44444444U);
    }
  }
}

/// weights::GroupedIntWeights. A group's scales and zeros travel behind its block's codes: for each g of 0 … 7 rows g
/// and g + 8, as {scale, scale, zero, zero} in f16, or {f32 scale, f32 scale, f16 zero, f16 zero, 4 bytes}.
/// kWholeBlocks: the common case of one group a block and f16 scales.
template <int kBits, bool kWholeBlocks>
struct IntCodec : NaturalColumns {
  static constexpr int kStages = kBits >= 4 ? 2 : kBits == 3 ? 3 : 4;
  static constexpr int kWords = lane_words(kBits);
  static constexpr bool kScalesGroups = true;
  static constexpr bool kHasOutliers = false;

  PackedBlocks packed;
  std::int32_t segments_per_group;  // within a block: 1, 2 or 4
  bool has_float_scales;

  struct Tables {};
  template <int kTiles>
  struct Cursor {
    const std::byte* from;
  };
  __host__ __device__ int stage_bytes() const { return kWholeBlocks ? code_bytes(kBits) + 64 : packed.block_bytes; }
  __device__ float row_scale(int) const { return 1; }
  __device__ void load_tables(const std::byte*, int, Tables&) const {}
  __device__ void load(const std::byte* stage, int lane, std::uint32_t (&words)[kWords]) const {
    load_lane_words<kBits>(stage, lane, words);
  }

  template <int kTiles>
  __device__ void move_to(Cursor<kTiles>& cursor, int tile, int block, int lane) const {
    cursor.from = packed.block(tile, block) + 16 * lane;
  }
  template <int kTiles>
  __device__ void advance(Cursor<kTiles>& cursor) const {
    cursor.from += stage_bytes();
  }
  template <int kTiles>
  __device__ void copy(const Cursor<kTiles>& cursor, bool, std::byte* stage, int lane) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      warp_copy(stage + i * stage_bytes(), cursor.from + i * packed.tile_bytes(), stage_bytes(), lane);
    }
  }

  __device__ bool starts_group(int segment) const {
    return segment == 0 || (!kWholeBlocks && (segment & (segments_per_group - 1)) == 0);
  }

  __device__ GroupGrid grid(const std::byte* stage, int segment, int lane, int, int) const {
    const int group = kWholeBlocks ? 0 : segment / segments_per_group;
    const std::byte* grids = stage + code_bytes(kBits);
    GroupGrid grid;
    __half2 zeros;
    if (!kWholeBlocks && has_float_scales) {
      const uint4 bits = reinterpret_cast<const uint4*>(grids)[group * 8 + lane / 4];
      grid.scale[0] = __uint_as_float(bits.x);
      grid.scale[1] = __uint_as_float(bits.y);
      zeros = as_half2(bits.z);
    } else {
      const uint2 bits = reinterpret_cast<const uint2*>(grids)[group * 8 + lane / 4];
      const float2 scales = __half22float2(as_half2(bits.x));
      grid.scale[0] = scales.x;
      grid.scale[1] = scales.y;
      zeros = as_half2(bits.y);
    }
    // Row g + 8 of up to four bits stands sixteen times too high: see fragments().
    grid.offset[0] = __hadd2(__half2half2(__low2half(zeros)), __float2half2_rn(1024));
    grid.offset[1] = kBits == 8 ? __hadd2(__half2half2(__high2half(zeros)), __float2half2_rn(1024))
                                : __hneg2(__hadd2(__half2half2(__high2half(zeros)), __float2half2_rn(64)));
    return grid;
  }

  /// code - zero. An f16 whose bits are 0x6400 | q is 1024 + q, and 0x6400 | 16 q is 1024 + 16 q: no conversion, and
  /// the differences are exact.
  __device__ void fragments(const std::uint32_t (&words)[kWords], int segment, const GroupGrid& grid, const Tables&,
                            Fragments& a) const {
    constexpr std::uint32_t kMagic = 0x64006400U;
    if constexpr (kBits == 8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t word = words[4 * segment + i];
        const int half = i % 2;
        a[i / 2][half] = as_bits(__hsub2(as_half2(permute_bytes(word, kMagic, 0x5150)), grid.offset[half]));
        a[i / 2][half + 2] = as_bits(__hsub2(as_half2(permute_bytes(word, kMagic, 0x5352)), grid.offset[half]));
      }
    } else {
      constexpr std::uint32_t kLow = 0x00010001U * ((1U << kBits) - 1);
      const __half2 sixteenth = __float2half2_rn(1.0F / 16);
      std::uint32_t nibbles[2];
      nibble_words<kBits>(words, segment, nibbles);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const std::uint32_t low = nibbles[step];
        const std::uint32_t high = low >> 8;
        a[step][0] = as_bits(__hsub2(as_half2(mask_or<kLow>(low, kMagic)), grid.offset[0]));
        a[step][1] = as_bits(__hfma2(as_half2(mask_or<(kLow << 4)>(low, kMagic)), sixteenth, grid.offset[1]));
        a[step][2] = as_bits(__hsub2(as_half2(mask_or<kLow>(high, kMagic)), grid.offset[0]));
        a[step][3] = as_bits(__hfma2(as_half2(mask_or<(kLow << 4)>(high, kMagic)), sixteenth, grid.offset[1]));
      }
    }
  }
};

/// Outliers of weights::CodebookWeights on the device; columns ascend strictly within a row.
struct Outliers {
  const std::int32_t* rows = nullptr;  // [out_features + 1], null where there are none
  const std::int32_t* cols = nullptr;
  const float* vals = nullptr;
};

/// weights::CodebookWeights. The f16 tables of a row tile are two planes of bytes, since PRMT selects bytes: for each
/// row 2^bits low bytes, then 2^bits high bytes.
template <int kBits>
struct CodebookCodec : NaturalColumns {
  static constexpr int kStages = kBits == 4 ? 2 : 3;
  static constexpr int kWords = lane_words(kBits);
  static constexpr bool kScalesGroups = false;
  static constexpr bool kHasOutliers = true;
  static constexpr int kPlaneWords = (1 << kBits) / 4;
  static constexpr int kTableBytes = kTileRows * 2 * (1 << kBits);

  PackedBlocks packed;
  const std::byte* tables;  // [num_tiles, kTableBytes]
  Outliers outliers;

  struct Tables {
    std::uint32_t low[2][kPlaneWords];
    std::uint32_t high[2][kPlaneWords];
  };
  __host__ __device__ static constexpr int stage_bytes() { return code_bytes(kBits) + kTableBytes; }
  __device__ float row_scale(int) const { return 1; }
  __device__ bool starts_group(int) const { return false; }
  __device__ GroupGrid grid(const std::byte*, int, int, int, int) const { return {}; }
  __device__ void load(const std::byte* stage, int lane, std::uint32_t (&words)[kWords]) const {
    load_lane_words<kBits>(stage, lane, words);
  }

  template <int kTiles>
  struct Cursor {
    const std::byte* from;
    int tile;
  };
  template <int kTiles>
  __device__ void move_to(Cursor<kTiles>& cursor, int tile, int block, int lane) const {
    cursor.from = packed.block(tile, block) + 16 * lane;
    cursor.tile = tile;
  }
  template <int kTiles>
  __device__ void advance(Cursor<kTiles>& cursor) const {
    cursor.from += code_bytes(kBits);
  }
  /// With a row tile's first block come its tables.
  template <int kTiles>
  __device__ void copy(const Cursor<kTiles>& cursor, bool is_first, std::byte* stage, int lane) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      std::byte* to = stage + i * stage_bytes();
      warp_copy(to, cursor.from + i * packed.tile_bytes(), code_bytes(kBits), lane);
      if (is_first) {
        warp_copy(to + code_bytes(kBits), tables + (cursor.tile + i) * std::int64_t{kTableBytes} + 16 * lane,
                  kTableBytes, lane);
      }
    }
  }

  __device__ void load_tables(const std::byte* stage, int lane, Tables& to) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* row = reinterpret_cast<const uint4*>(stage + code_bytes(kBits)) +
                        (lane / 4 + 8 * half) * (kTableBytes / kTileRows / 16);
      if constexpr (kBits == 4) {
        const uint4 low = row[0];
        const uint4 high = row[1];
        to.low[half][0] = low.x;
        to.low[half][1] = low.y;
        to.low[half][2] = low.z;
        to.low[half][3] = low.w;
        to.high[half][0] = high.x;
        to.high[half][1] = high.y;
        to.high[half][2] = high.z;
        to.high[half][3] = high.w;
      } else {
        const uint4 both = row[0];
        to.low[half][0] = both.x;
        to.low[half][1] = both.y;
        to.high[half][0] = both.z;
        to.high[half][1] = both.w;
      }
    }
  }

  /// Four bytes of a plane, by the low three bits of four nibbles; `upper` says by their fourth bits which half of
  /// sixteen entries.
  __device__ static std::uint32_t look_up(const std::uint32_t (&plane)[kPlaneWords], std::uint32_t selector,
                                          std::uint32_t upper) {
    const std::uint32_t low = permute_bytes(plane[0], plane[1], selector);
    if constexpr (kBits == 4) {
      return permute_bytes(low, permute_bytes(plane[2], plane[3], selector), upper);
    } else {
      return low;
    }
  }

  __device__ void fragments(const std::uint32_t (&words)[kWords], int segment, const GroupGrid&, const Tables& from,
                            Fragments& a) const {
    std::uint32_t nibbles[2];
    nibble_words<kBits>(words, segment, nibbles);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      // PRMT copies a sign where a selector's fourth bit is set.
      const std::uint32_t selectors = nibbles[step] & 0x77777777U;
      const std::uint32_t uppers = ((nibbles[step] >> 1) & 0x44444444U) | 0x32103210U;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t low = look_up(from.low[half], selectors >> (16 * half), uppers >> (16 * half));
        const std::uint32_t high = look_up(from.high[half], selectors >> (16 * half), uppers >> (16 * half));
        a[step][half] = permute_bytes(low, high, 0x5140);
        a[step][half + 2] = permute_bytes(low, high, 0x7362);
      }
    }
  }
};

/// weights::Fp8Weights as cuBLASLt reads them too: rows of codes. So that a lane's copies are 16 bytes, it owns 16
/// consecutive columns in two segments.
template <bool kBlockScales>
struct Fp8Codec {
  static constexpr int kStages = 2;
  static constexpr int kWords = lane_words(8);
  static constexpr bool kScalesGroups = kBlockScales;
  static constexpr bool kHasOutliers = false;

  const std::byte* codes;  // e4m3 [out_features, row_bytes]
  std::int64_t row_bytes;  // a multiple of 16, zeros behind the columns
  std::int32_t out_features;
  const float* scale;  // [out_features], or of blocks [ceil(out_features / 128), scale_cols]
  std::int32_t scale_cols;

  struct Tables {};
  template <int kTiles>
  struct Cursor {
    const std::byte* rows[kTiles][2];  // from the lane's first column
    int col;
  };
  __host__ __device__ static constexpr int stage_bytes() { return code_bytes(8); }
  __device__ static constexpr int lane_column(int t) { return 16 * t; }
  __device__ static constexpr int segment_column(int segment) { return 64 * (segment / 2) + 8 * (segment % 2); }
  __device__ float row_scale(int row) const { return kBlockScales ? 1 : scale[row]; }
  __device__ bool starts_group(int segment) const { return segment == 0; }
  __device__ void load_tables(const std::byte*, int, Tables&) const {}

  template <int kTiles>
  __device__ void move_to(Cursor<kTiles>& cursor, int tile, int block, int lane) const {
    cursor.col = kBlockCols * block + lane_column(lane % 4);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int row = min((tile + i / 2) * kTileRows + lane / 4 + 8 * (i % 2), out_features - 1);
      cursor.rows[i / 2][i % 2] = codes + row * row_bytes;
    }
  }
  template <int kTiles>
  __device__ void advance(Cursor<kTiles>& cursor) const {
    cursor.col += kBlockCols;
  }
  template <int kTiles>
  __device__ void copy(const Cursor<kTiles>& cursor, bool, std::byte* stage, int lane) const {
#pragma unroll
    for (int v = 0; v < 4 * kTiles; ++v) {
      const int col = cursor.col + 64 * (v % 4 / 2);
      const bool is_there = col < row_bytes;
      vector_copy(stage + (v * 32 + lane) * 16, cursor.rows[v / 4][v % 2] + (is_there ? col : 0), is_there);
    }
  }

  __device__ void load(const std::byte* stage, int lane, std::uint32_t (&words)[kWords]) const {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const uint4 four = reinterpret_cast<const uint4*>(stage)[v * 32 + lane];
      words[4 * v] = four.x;
      words[4 * v + 1] = four.y;
      words[4 * v + 2] = four.z;
      words[4 * v + 3] = four.w;
    }
  }

  __device__ GroupGrid grid(const std::byte*, int, int, int tile, int block) const {
    const int row = min(tile * kTileRows, out_features - 1);
    const float s = scale[row / 128 * scale_cols + min(block, scale_cols - 1)];
    return {.scale = {s, s}, .offset = {}};
  }

  __device__ void fragments(const std::uint32_t (&words)[kWords], int segment, const GroupGrid&, const Tables&,
                            Fragments& a) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const std::uint32_t word = words[4 * (2 * (segment / 2) + half) + 2 * (segment % 2) + step];
        a[step][half] = pair(word);
        a[step][half + 2] = pair(word >> 16);
      }
    }
  }

 private:
  /// Two codes as halves, exactly.
  __device__ static std::uint32_t pair(std::uint32_t codes) {
    std::uint32_t halves = 0;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(codes)));
    return halves;
  }
};

/// weights::DenseWeights in f16, rows as they are.
struct DenseCodec : NaturalColumns {
  static constexpr int kStages = 2;
  static constexpr int kWords = lane_words(16);
  static constexpr bool kScalesGroups = false;
  static constexpr bool kHasOutliers = false;

  const __half* weights;     // [out_features, in_features]
  std::int32_t in_features;  // a multiple of 8
  std::int32_t out_features;

  struct Tables {};
  template <int kTiles>
  struct Cursor {
    const __half* rows[kTiles][2];
    int col;
  };
  __host__ __device__ static constexpr int stage_bytes() { return code_bytes(16); }
  __device__ float row_scale(int) const { return 1; }
  __device__ bool starts_group(int) const { return false; }
  __device__ GroupGrid grid(const std::byte*, int, int, int, int) const { return {}; }
  __device__ void load_tables(const std::byte*, int, Tables&) const {}

  template <int kTiles>
  __device__ void move_to(Cursor<kTiles>& cursor, int tile, int block, int lane) const {
    cursor.col = kBlockCols * block + lane_column(lane % 4);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int row = min((tile + i / 2) * kTileRows + lane / 4 + 8 * (i % 2), out_features - 1);
      cursor.rows[i / 2][i % 2] = weights + static_cast<std::int64_t>(row) * in_features;
    }
  }
  template <int kTiles>
  __device__ void advance(Cursor<kTiles>& cursor) const {
    cursor.col += kBlockCols;
  }
  template <int kTiles>
  __device__ void copy(const Cursor<kTiles>& cursor, bool, std::byte* stage, int lane) const {
#pragma unroll
    for (int v = 0; v < 8 * kTiles; ++v) {
      const int col = cursor.col + segment_column(v % 8 / 2);
      const bool is_there = col < in_features;
      vector_copy(stage + (v * 32 + lane) * 16, cursor.rows[v / 8][v % 2] + (is_there ? col : 0), is_there);
    }
  }

  __device__ void load(const std::byte* stage, int lane, std::uint32_t (&words)[kWords]) const {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      const uint4 four = reinterpret_cast<const uint4*>(stage)[v * 32 + lane];
      words[4 * v] = four.x;
      words[4 * v + 1] = four.y;
      words[4 * v + 2] = four.z;
      words[4 * v + 3] = four.w;
    }
  }

  __device__ void fragments(const std::uint32_t (&words)[kWords], int segment, const GroupGrid&, const Tables&,
                            Fragments& a) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        a[step][half] = words[4 * (2 * segment + half) + 2 * step];
        a[step][half + 2] = words[4 * (2 * segment + half) + 2 * step + 1];
      }
    }
  }
};

}  // namespace nibble::backend::cuda
