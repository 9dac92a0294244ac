#include "backend/cuda/attention_merge.h"

#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/launch.cuh"

namespace nibble::backend::cuda {
namespace {

constexpr int kWarps = 4;

template <int kPerLane>
struct alignas(kPerLane * sizeof(__half)) Halves {
  __half values[kPerLane];
};

__device__ float warp_max(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, offset));
  }
  return value;
}

/// A warp a row and head; a lane kPerLane neighbouring elements. Lanes hold the weights of 32 parts at a time.
template <int kPerLane>
__global__ void merge_kernel(PartialResults results) {
  wait_for_earlier_kernels();
  const std::int64_t item = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (item >= results.num_rows * results.num_heads) return;
  const MergeRow row = results.rows[item / results.num_heads];
  const std::int64_t head = item % results.num_heads;
  const float* sums = results.partial_sums + std::int64_t{row.first} * results.num_heads + head;
  const auto* partials = static_cast<const Halves<kPerLane>*>(results.partials) +
                         (std::int64_t{row.first} * results.num_heads + head) * kWarpSize + lane;

  float max = -INFINITY;
  for (int i = lane; i < row.count; i += kWarpSize) max = fmaxf(max, sums[std::int64_t{i} * results.num_heads]);
  max = warp_max(max);
  float total = 0;
  float merged[kPerLane] = {};
  for (int begin = 0; begin < row.count; begin += kWarpSize) {
    const int part = begin + lane;
    const float weight = part < row.count ? exp2f(sums[std::int64_t{part} * results.num_heads] - max) : 0;
    total += weight;
    const int end = min(kWarpSize, row.count - begin);
#pragma unroll 4
    for (int i = 0; i < end; ++i) {
      const float scale = __shfl_sync(0xffffffff, weight, i);
      const Halves<kPerLane> loaded = partials[std::int64_t{begin + i} * results.num_heads * kWarpSize];
      for (int d = 0; d < kPerLane; ++d) merged[d] += scale * __half2float(loaded.values[d]);
    }
  }
  total = warp_sum(total);
  const float inverse = total > 0 ? 1 / total : 0;
  Halves<kPerLane> rounded;
  for (int d = 0; d < kPerLane; ++d) rounded.values[d] = __float2half(merged[d] * inverse);
  static_cast<Halves<kPerLane>*>(results.out)[(std::int64_t{row.row} * results.num_heads + head) * kWarpSize + lane] =
      rounded;
}

}  // namespace

void merge_partials(const PartialResults& results, cudaStream_t stream) {
  if (results.num_rows == 0) return;
  const std::int64_t num_warps = results.num_rows * results.num_heads;
  const LaunchSize size{.blocks = static_cast<int>((num_warps + kWarps - 1) / kWarps), .threads = kWarps * kWarpSize};
  switch (results.head_dim) {
    case 64: return launch_dependent(merge_kernel<2>, size, stream, results);
    case 128: return launch_dependent(merge_kernel<4>, size, stream, results);
    case 256: return launch_dependent(merge_kernel<8>, size, stream, results);
    default: nibble::check(false, "merge_partials: no kernel of this head_dim");
  }
}

}  // namespace nibble::backend::cuda
