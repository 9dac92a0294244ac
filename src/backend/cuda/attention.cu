#include "backend/cuda/attention.h"

#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kWarps = 8;  // of one query head: each takes every eighth position
constexpr int kMaxPerLane = kMaxHeadDim / kWarpSize;

/// Widths in elements; one layer's cache.
struct Heads {
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  __host__ __device__ std::int64_t q_width() const { return std::int64_t{num_heads} * head_dim; }
  __host__ __device__ std::int64_t kv_width() const { return std::int64_t{num_kv_heads} * head_dim; }
  __host__ __device__ std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

/// Softmax-weighted sum of values, as far as it has come: weights are relative to exp(max).
template <int kPerLane>
struct Partial {
  float max = -INFINITY;
  float sum = 0;
  float values[kPerLane] = {};  // of element lane + 32 i
};

template <class Kv>
struct CacheView {
  const Kv* keys;
  const Kv* values;
  float k_scale;
  float v_scale;
  std::int32_t block_size;
};

/// One block a token and query head; a warp goes over every kWarps-th position, a lane over every 32nd element.
template <class T, class Kv, int kPerLane>
__global__ void attention_kernel(const T* qkv, Heads heads, float scale, std::int32_t window, CacheView<Kv> cache,
                                 DeviceBatch batch, T* out) {
  const std::int64_t token = blockIdx.x;
  const int head = blockIdx.y;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  // A token without a slot pads the batch: it sees nothing, and its row is zero.
  const std::int32_t end = batch.slot_mapping[token] < 0 ? 0 : batch.positions[token] + 1;
  const std::int32_t first = window > 0 ? max(0, end - window) : 0;
  const std::int32_t* blocks = batch.block_table + batch.sequence_of[token] * batch.block_table_stride;
  const std::int64_t kv_offset = std::int64_t{head / (heads.num_heads / heads.num_kv_heads)} * heads.head_dim;
  const T* q = qkv + token * heads.qkv_width() + std::int64_t{head} * heads.head_dim;
  float query[kPerLane];
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarpSize;
    query[i] = d < heads.head_dim ? static_cast<float>(q[d]) * scale * cache.k_scale : 0;
  }

  Partial<kPerLane> partial;
  for (std::int32_t position = first + warp; position < end; position += kWarps) {
    const std::int64_t slot =
        std::int64_t{blocks[position / cache.block_size]} * cache.block_size + position % cache.block_size;
    const Kv* key = cache.keys + slot * heads.kv_width() + kv_offset;
    const Kv* value = cache.values + slot * heads.kv_width() + kv_offset;
    float score = 0;
    float loaded[kPerLane];
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + i * kWarpSize;
      const bool is_inside = d < heads.head_dim;
      score += is_inside ? query[i] * static_cast<float>(key[d]) : 0;
      loaded[i] = is_inside ? static_cast<float>(value[d]) : 0;
    }
    score = warp_sum(score);
    const float new_max = fmaxf(partial.max, score);
    const float keep = __expf(partial.max - new_max);
    const float weight = __expf(score - new_max);
    partial.max = new_max;
    partial.sum = partial.sum * keep + weight;
    for (int i = 0; i < kPerLane; ++i) partial.values[i] = partial.values[i] * keep + weight * loaded[i];
  }

  // The warps' parts, added up in order.
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float values[kWarps][kPerLane * kWarpSize];
  if (lane == 0) {
    maxima[warp] = partial.max;
    sums[warp] = partial.sum;
  }
  for (int i = 0; i < kPerLane; ++i) values[warp][lane + i * kWarpSize] = partial.values[i];
  __syncthreads();
  float max = maxima[0];
  for (int w = 1; w < kWarps; ++w) max = fmaxf(max, maxima[w]);
  if (max == -INFINITY) max = 0;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += sums[w] * __expf(maxima[w] - max);
  for (int d = threadIdx.x; d < heads.head_dim; d += kWarps * kWarpSize) {
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += values[w][d] * __expf(maxima[w] - max);
    out[token * heads.q_width() + std::int64_t{head} * heads.head_dim + d] =
        sum > 0 ? static_cast<T>(total / sum * cache.v_scale) : static_cast<T>(0.0F);
  }
}

/// Calls `use` with the number of elements a lane holds, as a constant.
template <class Use>
void with_elements_per_lane(std::int32_t head_dim, Use use) {
  if (head_dim <= 2 * kWarpSize) return use(std::integral_constant<int, 2>{});
  if (head_dim <= 4 * kWarpSize) return use(std::integral_constant<int, 4>{});
  return use(std::integral_constant<int, kMaxPerLane>{});
}

/// The scale is that of 8-bit dtypes, else 1.
float stored_scale(const KvSpec& spec, float scale) {
  return spec.dtype == DType::F8E4M3 ? scale : 1.0F;
}

Heads heads_of(const AttentionSpec& spec) {
  return {spec.num_heads, spec.num_kv_heads, spec.head_dim};
}

}  // namespace

void attention(const Activation& qkv, const AttentionSpec& spec, const CudaKvCache& cache, std::int64_t layer_idx,
               const DeviceBatch& batch, const AttentionPlan& plan, Activation& out, cudaStream_t stream) {
  const Heads heads = heads_of(spec);
  nibble::check(
      out.width() == heads.q_width() && out.capacity() >= qkv.num_tokens && out.format.kind == qkv.format.kind,
      "cuda attention: out [num_tokens, q_width] in the format of qkv");
  if (!out.format.input_permutation.empty()) {
    throw Error(ErrorCode::Unsupported, "cuda attention: act-order activations are not computed yet; use --device cpu");
  }
  out.num_tokens = qkv.num_tokens;
  if (qkv.num_tokens == 0) return;
  const KvSpec& layer = cache.layer(layer_idx);
  if (AttentionPlan::is_supported(layer, qkv.format.kind)) {
    return plan.run(qkv, spec, cache, layer_idx, batch.block_table, out, stream);
  }
  const dim3 grid(static_cast<unsigned>(qkv.num_tokens), static_cast<unsigned>(heads.num_heads));
  with_float_type(qkv.format.kind, "attention", [&](auto element) {
    with_dtype(layer.dtype, "attention", [&](auto stored) {
      with_elements_per_lane(heads.head_dim, [&](auto per_lane) {
        using T = decltype(element);
        using Kv = decltype(stored);
        const CacheView<Kv> view{
            reinterpret_cast<const Kv*>(cache.keys(layer_idx)), reinterpret_cast<const Kv*>(cache.values(layer_idx)),
            stored_scale(layer, layer.k_scale), stored_scale(layer, layer.v_scale), cache.block_size()};
        attention_kernel<T, Kv, decltype(per_lane)::value><<<grid, kWarps * kWarpSize, 0, stream>>>(
            device_data<T>(qkv), heads, spec.scale, spec.sliding_window, view, batch, device_data<T>(out));
      });
    });
  });
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
