#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device_part.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/weight_readers.cuh"

/// Products of few tokens that read the weights once, for any reader of weight_readers.cuh, and the reader's weights
/// written out for cuBLASLt.
namespace nibble::backend::cuda {

inline constexpr int kStreamWarps = 8;  // of a block: one output each
// Up to so many tokens the arithmetic hides behind reading the weights.
inline constexpr std::int64_t kMaxStreamedTokens = 8;

/// sums[t] += Σ_j w[j] x[t, first + j] over one chunk.
template <class T, int kTokens>
__device__ void add_chunk(const float (&w)[kChunk], const T* x, std::int64_t first, std::int64_t in, int num_tokens,
                          float (&sums)[kTokens]) {
  // Rows of x are aligned to vectors where `in` is a multiple of them, and then a chunk may end early in whole vectors.
  const bool has_vectors = in % Vector<T>::kSize == 0;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= num_tokens) return;
    const T* row = x + t * in + first;
    if (has_vectors) {
#pragma unroll
      for (int v = 0; v < kChunk / Vector<T>::kSize; ++v) {
        if (first + v * Vector<T>::kSize >= in) break;
        const Vector<T> values = reinterpret_cast<const Vector<T>*>(row)[v];
#pragma unroll
        for (int j = 0; j < Vector<T>::kSize; ++j) {
          sums[t] = fmaf(w[v * Vector<T>::kSize + j], static_cast<float>(values.values[j]), sums[t]);
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        if (first + j < in) sums[t] = fmaf(w[j], static_cast<float>(row[j]), sums[t]);
      }
    }
  }
}

/// y[t, n] = Σ_k w[n, k] x[t, k], a warp an output.
template <class Reader, class T, class Out, int kTokens>
__global__ void __launch_bounds__(kStreamWarps* kWarpSize)
    stream_kernel(Reader reader, const T* x, int num_tokens, std::int64_t in, std::int64_t out, Out* y,
                  std::int64_t stride) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kStreamWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (n >= out) return;
  float sums[kTokens] = {};
  for (std::int64_t chunk = lane; chunk * kChunk < in; chunk += kWarpSize) {
    float w[kChunk];
    reader.read(n, chunk, w);
    add_chunk<T, kTokens>(w, x, chunk * kChunk, in, num_tokens, sums);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane == 0 && t < num_tokens) y[t * stride + n] = static_cast<Out>(sum);
  }
}

template <class Reader, class T, class Out>
void stream_weights(const Reader& reader, const Activation& x, std::int64_t out, const OutputColumns& y,
                    cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((out + kStreamWarps - 1) / kStreamWarps);
  const auto num_tokens = static_cast<int>(x.num_tokens);
  auto* to = static_cast<Out*>(y.data);
  constexpr int kThreads = kStreamWarps * kWarpSize;
  if (num_tokens == 1) {
    stream_kernel<Reader, T, Out, 1>
        <<<blocks, kThreads, 0, stream>>>(reader, device_data<T>(x), 1, x.width(), out, to, y.stride);
  } else if (num_tokens <= 4) {
    stream_kernel<Reader, T, Out, 4>
        <<<blocks, kThreads, 0, stream>>>(reader, device_data<T>(x), num_tokens, x.width(), out, to, y.stride);
  } else {
    stream_kernel<Reader, T, Out, 8>
        <<<blocks, kThreads, 0, stream>>>(reader, device_data<T>(x), num_tokens, x.width(), out, to, y.stride);
  }
}

/// By the formats of x and y, which are f16 → f16, f16 → f32 or f32 → f32.
template <class Reader>
void multiply_streamed(const Reader& reader, const Activation& x, std::int64_t out, const OutputColumns& y,
                       cudaStream_t stream) {
  nibble::check(x.num_tokens <= kMaxStreamedTokens, "cuda: too many tokens for a streaming product");
  if (x.format.kind == ActivationKind::F32) {
    nibble::check(y.kind == ActivationKind::F32, "cuda linear: f32 in, f32 out");
    stream_weights<Reader, float, float>(reader, x, out, y, stream);
  } else if (y.kind == ActivationKind::F32) {
    stream_weights<Reader, __half, float>(reader, x, out, y, stream);
  } else {
    stream_weights<Reader, __half, __half>(reader, x, out, y, stream);
  }
  check(cudaGetLastError());
}

/// to[n, k] = w[n, k], a warp an output row.
template <class Reader, class To>
__global__ void __launch_bounds__(kStreamWarps* kWarpSize)
    dequantize_kernel(Reader reader, std::int64_t in, std::int64_t out, To* to) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kStreamWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (n >= out) return;
  To* row = to + n * in;
  for (std::int64_t chunk = lane; chunk * kChunk < in; chunk += kWarpSize) {
    float w[kChunk];
    reader.read(n, chunk, w);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (chunk * kChunk + j < in) row[chunk * kChunk + j] = static_cast<To>(w[j]);
    }
  }
}

template <class Reader>
void write_dense(const Reader& reader, std::int64_t in, std::int64_t out, ActivationKind kind, void* to,
                 cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((out + kStreamWarps - 1) / kStreamWarps);
  constexpr int kThreads = kStreamWarps * kWarpSize;
  if (kind == ActivationKind::F32) {
    dequantize_kernel<<<blocks, kThreads, 0, stream>>>(reader, in, out, static_cast<float*>(to));
  } else {
    dequantize_kernel<<<blocks, kThreads, 0, stream>>>(reader, in, out, static_cast<__half*>(to));
  }
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
