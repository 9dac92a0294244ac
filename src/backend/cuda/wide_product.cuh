#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/weight_codecs.cuh"

namespace nibble::backend::cuda {

/// Beyond, writing the weights out as f16 once and cuBLASLt's product take less time.
inline constexpr std::int64_t kMaxWideTokens = 1024;

/// Codecs of packed blocks.
template <class Codec>
inline constexpr bool kIsWide = false;
template <int kBits, bool kWholeBlocks>
inline constexpr bool kIsWide<IntCodec<kBits, kWholeBlocks>> = true;
template <int kBits>
inline constexpr bool kIsWide<CodebookCodec<kBits>> = true;

struct WideProduct {
  std::int32_t num_tokens = 0;
  std::int32_t num_rows = 0;    // of W
  std::int32_t num_tiles = 0;   // of 16 rows, packed
  std::int32_t num_blocks = 0;  // of 128 columns
  void* y = nullptr;            // [num_tokens, y_stride], f16 or f32
  std::int64_t y_stride = 0;
  bool has_float_y = false;
  float* partials = nullptr;         // [blocks of threads, rows of a tile, kTokens]
  std::uint32_t* arrived = nullptr;  // [blocks of threads], zero between launches
};

/// Bytes of `WideProduct::partials` at most: a tile of every block of threads.
inline std::int64_t wide_partial_bytes() {
  return num_multiprocessors() * std::int64_t{128 * 256 * sizeof(float)};
}

/// y = W x of up to kMaxWideTokens tokens on a GPU of compute capability 9.0 (wide_kernel.cuh), for codecs with
/// kIsWide, groups of at least 64 columns, f16 scales and no outliers.
///
/// x  f16 [num_tokens, num_blocks * 128] as arrange_inputs() leaves it
template <class Codec>
void multiply_wide(const Codec& codec, const void* x, const WideProduct& p, cudaStream_t stream);

}  // namespace nibble::backend::cuda
