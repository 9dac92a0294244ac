#include "backend/cuda/norm.h"

#include <algorithm>
#include <cstdint>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/vectors.cuh"

// A block a token, which stays in registers between its sum of squares and its scaling: hidden and delta are read once,
// hidden and out written once, 8 bytes a channel in f16. Of one token the time is that of one trip to memory and back;
// of many the ceiling is a copy's rate.
namespace nibble::backend::cuda {
namespace {

constexpr int kMaxThreads = 512;

/// Sum over the block, in a fixed order: the same bits in every run. All threads get it.
__device__ float block_sum(float value) {
  __shared__ float warp_sums[kWarpSize];
  value = warp_sum(value);
  const unsigned lane = threadIdx.x % kWarpSize;
  if (lane == 0) warp_sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / kWarpSize ? warp_sums[lane] : 0);
}

template <int kSize>
__device__ float sum_squares(const float (&values)[kSize]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kSize; ++j) sum += values[j] * values[j];
  return sum;
}

/// values = T(values + delta), which hidden becomes.
template <class T>
__device__ void add_delta(float (&values)[kVectorSize<T>], const float (&delta)[kVectorSize<T>], T* row, std::int64_t v,
                          std::int64_t width) {
#pragma unroll
  for (int j = 0; j < kVectorSize<T>; ++j) {
    values[j] = static_cast<float>(static_cast<T>(values[j] + delta[j]));
  }
  store_run(row, v, width, values);
}

template <class Out, int kSize>
__device__ void store_scaled(const float (&values)[kSize], float inverse_rms, const float (&weight)[kSize],
                             std::int64_t v, std::int64_t width, Out* row) {
  float scaled[kSize];
#pragma unroll
  for (int j = 0; j < kSize; ++j) scaled[j] = values[j] * inverse_rms * weight[j];
  store_run(row, v, width, scaled);
}

/// hidden, delta [num_tokens, width] of T, delta may be null; weight f32 [width]; out [num_tokens, width] of Out. The
/// first kVectors vectors of a thread stay in registers, those of wider rows are read again.
template <class T, class Out, int kVectors>
__global__ void __launch_bounds__(kMaxThreads)
    norm_kernel(T* hidden, const T* delta, const float* weight, float eps, Out* out, std::int64_t width) {
  constexpr int kSize = kVectorSize<T>;
  T* row = hidden + blockIdx.x * width;
  const T* delta_row = delta + blockIdx.x * width;
  Out* out_row = out + blockIdx.x * width;
  const std::int64_t vectors = num_vectors<T>(width);
  const std::int64_t first_again = static_cast<std::int64_t>(kVectors) * blockDim.x + threadIdx.x;
  const auto vector = [&](int i) { return static_cast<std::int64_t>(i) * blockDim.x + threadIdx.x; };

  let_next_kernel_start();
  // Every load is on its way before the first is waited for.
  float kept[kVectors][kSize] = {};
  float added[kVectors][kSize] = {};
  float weights[kVectors][kSize];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector(i) < vectors) load_run(weight, vector(i), width, weights[i]);
  }
  wait_for_earlier_kernels();
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector(i) >= vectors) break;
    load_run(row, vector(i), width, kept[i]);
    if (delta != nullptr) load_run(delta_row, vector(i), width, added[i]);
  }

  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector(i) >= vectors) break;
    if (delta != nullptr) add_delta(kept[i], added[i], row, vector(i), width);
    sum += sum_squares(kept[i]);
  }
  for (std::int64_t v = first_again; v < vectors; v += blockDim.x) {
    float values[kSize];
    load_run(row, v, width, values);
    if (delta != nullptr) {
      float more[kSize];
      load_run(delta_row, v, width, more);
      add_delta(values, more, row, v, width);
    }
    sum += sum_squares(values);
  }

  const float inverse_rms = rsqrtf(block_sum(sum) / static_cast<float>(width) + eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector(i) >= vectors) break;
    store_scaled(kept[i], inverse_rms, weights[i], vector(i), width, out_row);
  }
  for (std::int64_t v = first_again; v < vectors; v += blockDim.x) {
    float values[kSize];
    float more[kSize];
    load_run(row, v, width, values);
    load_run(weight, v, width, more);
    store_scaled(values, inverse_rms, more, v, width, out_row);
  }
}

/// By the width alone, so that a token's bits do not depend on its batch.
int num_threads(std::int64_t vectors) {
  const std::int64_t warps = (vectors + kWarpSize - 1) / kWarpSize;
  return static_cast<int>(std::min<std::int64_t>(warps * kWarpSize, kMaxThreads));
}

template <class T, class Out>
void launch(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out,
            cudaStream_t stream) {
  const std::int64_t vectors = num_vectors<T>(hidden.width());
  const auto kernel = vectors <= 2 * kMaxThreads ? norm_kernel<T, Out, 2> : norm_kernel<T, Out, 4>;
  launch_dependent(kernel, {.blocks = static_cast<int>(hidden.num_tokens), .threads = num_threads(vectors)}, stream,
                   device_data<T>(hidden), delta == nullptr ? nullptr : device_data<T>(*delta),
                   static_cast<const float*>(weight.view().data()), eps, device_data<Out>(out), hidden.width());
}

}  // namespace

void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out,
          cudaStream_t stream) {
  nibble::check(delta == nullptr || (delta->format.kind == hidden.format.kind && delta->width() == hidden.width() &&
                                     delta->num_tokens == hidden.num_tokens),
                "cuda norm: delta is a matrix like hidden");
  nibble::check(
      weight.num_elements() == hidden.width() && out.width() == hidden.width() && out.capacity() >= hidden.num_tokens,
      "cuda norm: weight [width] and out [num_tokens, width]");
  if (!out.format.input_permutation.empty()) {
    throw Error(ErrorCode::Unsupported, "cuda norm: act-order activations are not computed yet");
  }
  out.num_tokens = hidden.num_tokens;
  if (hidden.num_tokens == 0) return;
  with_float_type(hidden.format.kind, "norm", [&](auto element) {
    with_float_type(out.format.kind, "norm", [&](auto out_element) {
      launch<decltype(element), decltype(out_element)>(hidden, delta, weight, eps, out, stream);
    });
  });
}

}  // namespace nibble::backend::cuda
