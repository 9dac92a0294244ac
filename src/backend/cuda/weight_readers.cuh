#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/element.cuh"

/// How kernels read quantized weights: 32 consecutive inputs of one output at a time, a chunk, which is `bits` words of
/// the code stream. Rows are padded to whole chunks; what lies beyond in_features is finite and multiplied by zero.
namespace nibble::backend::cuda {

inline constexpr int kChunk = 32;

/// Code `i` of a chunk of the little-endian stream of weights::GroupedIntWeights.
template <int kBits>
__device__ inline std::uint32_t code_at(const std::uint32_t (&words)[kBits], int i) {
  const int bit = i * kBits;
  std::uint32_t code = words[bit / 32] >> (bit % 32);
  if (bit % 32 + kBits > 32) code |= words[bit / 32 + 1] << (32 - bit % 32);  // 3 bits only
  return code & ((1U << kBits) - 1);
}

/// One chunk's words, in the widest loads that its alignment allows.
template <int kBits>
__device__ inline void load_words(const std::uint32_t* from, std::uint32_t (&words)[kBits]) {
  if constexpr (kBits % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kBits / 4; ++i) {
      const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from) + i);
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kBits; ++i) words[i] = __ldcs(from + i);
  }
}

/// weights::GroupedIntWeights: w[n, k] = scales[n, g] (code - zeros[n, g]), g = g_idx ? g_idx[k] : (k + offset) / size
template <int kBits>
struct IntReader {
  const std::uint32_t* codes;  // [out, num_chunks * kBits]
  const void* scales;          // f16 or f32 [out, num_groups]
  const std::int16_t* zeros;   // [out, num_groups]
  const std::int32_t* g_idx;   // [num_chunks * 32] or null
  std::int64_t num_chunks;
  std::int64_t num_groups;
  std::int32_t group_size;
  std::int32_t first_group_offset;
  bool has_half_scales;

  __device__ float scale(std::int64_t at) const {
    return has_half_scales ? __half2float(static_cast<const __half*>(scales)[at])
                           : static_cast<const float*>(scales)[at];
  }

  __device__ void read(std::int64_t n, std::int64_t chunk, float (&w)[kChunk]) const {
    std::uint32_t words[kBits];
    load_words<kBits>(codes + (n * num_chunks + chunk) * kBits, words);
    const std::int64_t grids = n * num_groups;
    const std::int32_t first = static_cast<std::int32_t>(chunk) * kChunk + first_group_offset;
    if (g_idx == nullptr && first / group_size == (first + kChunk - 1) / group_size) {
      const float s = scale(grids + first / group_size);
      const auto z = static_cast<float>(zeros[grids + first / group_size]);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) w[j] = s * (static_cast<float>(code_at<kBits>(words, j)) - z);
      return;
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const std::int64_t group =
          g_idx != nullptr ? g_idx[chunk * kChunk + j] : min(std::int64_t{(first + j) / group_size}, num_groups - 1);
      w[j] = scale(grids + group) *
             (static_cast<float>(code_at<kBits>(words, j)) - static_cast<float>(zeros[grids + group]));
    }
  }
};

/// weights::Fp8Weights: w[n, k] = float(code) * scale[n / block_rows, k / block_cols]
struct Fp8Reader {
  const std::uint32_t* codes;  // e4m3 [out, num_chunks * 32]
  const float* scale;          // [ceil(out / block_rows), scale_cols]
  std::int64_t num_chunks;
  std::int64_t scale_cols;
  std::int32_t block_rows;
  std::int32_t block_cols;  // a multiple of 32, or all inputs

  __device__ void read(std::int64_t n, std::int64_t chunk, float (&w)[kChunk]) const {
    std::uint32_t words[8];
    load_words<8>(codes + (n * num_chunks + chunk) * 8, words);
    const float s = scale[static_cast<std::int32_t>(n) / block_rows * scale_cols +
                          static_cast<std::int32_t>(chunk) * kChunk / block_cols];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      __nv_fp8_e4m3 code;
      code.__x = static_cast<__nv_fp8_storage_t>(words[j / 4] >> (j % 4 * 8));
      w[j] = s * static_cast<float>(code);
    }
  }
};

}  // namespace nibble::backend::cuda
