#include "backend/cuda/norm.h"

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;

/// Sum over the block, in a fixed order: the same bits in every run. All threads get it.
__device__ float block_sum(float value) {
  __shared__ float warp_sums[kThreads / kWarpSize];
  value = warp_sum(value);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) sum += warp_sums[warp];
  return sum;
}

/// One block a token. hidden, delta [num_tokens, width] of T, weight f32 [width], out [num_tokens, width] of Out.
template <class T, class Out>
__global__ void norm_kernel(T* hidden, const T* delta, const float* weight, float eps, Out* out, std::int64_t width) {
  T* row = hidden + blockIdx.x * width;
  const T* delta_row = delta == nullptr ? nullptr : delta + blockIdx.x * width;
  float sum_squares = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) {
    if (delta_row != nullptr) row[i] = static_cast<T>(static_cast<float>(row[i]) + static_cast<float>(delta_row[i]));
    const float value = static_cast<float>(row[i]);
    sum_squares += value * value;
  }
  const float inverse_rms = rsqrtf(block_sum(sum_squares) / static_cast<float>(width) + eps);
  Out* out_row = out + blockIdx.x * width;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) {
    out_row[i] = static_cast<Out>(static_cast<float>(row[i]) * inverse_rms * weight[i]);
  }
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
      using T = decltype(element);
      using Out = decltype(out_element);
      norm_kernel<<<static_cast<unsigned>(hidden.num_tokens), kThreads, 0, stream>>>(
          static_cast<T*>(hidden.values.mutable_view().data()),
          delta == nullptr ? nullptr : static_cast<const T*>(delta->values.view().data()),
          static_cast<const float*>(weight.view().data()), eps, static_cast<Out*>(out.values.mutable_view().data()),
          hidden.width());
    });
  });
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
