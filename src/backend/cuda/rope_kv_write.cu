#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/launch.cuh"

// Rotary embedding of q and k in place, and k, v into the cache: one launch. Bound by its start at decode (16 kB a
// token of Llama-2-7B) and by memory at prefill; a thread moves vectors of 16 bytes.
namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 128;

template <class T, int kSize>
struct alignas(sizeof(T) * kSize < 16 ? sizeof(T) * kSize : 16) Vector {
  T values[kSize];
};

template <class T, class Kv>
struct RopeArguments {
  T* qkv;
  const float* cos;  // [max_positions, head_dim / 2]
  const float* sin;
  Kv* keys;
  Kv* values;
  float k_scale;
  float v_scale;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
};

/// stored = cast(value / scale), divided as the reference does: ties must fall the same way.
template <class Kv>
__device__ Kv store_cast(float value, float scale) {
  if constexpr (std::is_same_v<Kv, __nv_fp8_e4m3>) return Kv(value / scale);
  return static_cast<Kv>(value);
}

/// kSize pairs (j, j + head_dim / 2) of one head of q or k, from j on.
template <int kSize, class T, class Kv>
__device__ void rotate(const RopeArguments<T, Kv>& arguments, T* row, int head, int j, std::int32_t position,
                       std::int64_t slot) {
  const int half = arguments.head_dim / 2;
  T* x = row + std::int64_t{head} * arguments.head_dim + j;
  auto low = *reinterpret_cast<const Vector<T, kSize>*>(x);
  auto high = *reinterpret_cast<const Vector<T, kSize>*>(x + half);
  const std::int64_t angle = std::int64_t{position} * half + j;
  const auto cos = *reinterpret_cast<const Vector<float, kSize>*>(arguments.cos + angle);
  const auto sin = *reinterpret_cast<const Vector<float, kSize>*>(arguments.sin + angle);
  Vector<Kv, kSize> stored_low, stored_high;
  for (int i = 0; i < kSize; ++i) {
    const float a = static_cast<float>(low.values[i]);
    const float b = static_cast<float>(high.values[i]);
    const float rotated_a = a * cos.values[i] - b * sin.values[i];
    const float rotated_b = b * cos.values[i] + a * sin.values[i];
    low.values[i] = static_cast<T>(rotated_a);
    high.values[i] = static_cast<T>(rotated_b);
    stored_low.values[i] = store_cast<Kv>(rotated_a, arguments.k_scale);  // k is rounded once
    stored_high.values[i] = store_cast<Kv>(rotated_b, arguments.k_scale);
  }
  *reinterpret_cast<Vector<T, kSize>*>(x) = low;
  *reinterpret_cast<Vector<T, kSize>*>(x + half) = high;
  const int kv_head = head - arguments.num_heads;
  if (kv_head < 0 || slot < 0) return;
  Kv* key = arguments.keys + (slot * arguments.num_kv_heads + kv_head) * arguments.head_dim + j;
  *reinterpret_cast<Vector<Kv, kSize>*>(key) = stored_low;
  *reinterpret_cast<Vector<Kv, kSize>*>(key + half) = stored_high;
}

/// Grid [parts of a token, tokens]; a thread a vector of pairs of a head of q or k, or a vector of v.
template <class T, class Kv, int kSize>
__global__ void rope_kv_write_kernel(RopeArguments<T, Kv> arguments, DeviceBatch batch) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t token = blockIdx.y;
  const int item = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int per_head = arguments.head_dim / 2 / kSize;
  const int num_rotated = (arguments.num_heads + arguments.num_kv_heads) * per_head;  // k follows q
  const int kv_width = arguments.num_kv_heads * arguments.head_dim;
  T* row = arguments.qkv + token * (std::int64_t{arguments.num_heads} * arguments.head_dim + 2 * kv_width);
  const std::int64_t slot = batch.slot_mapping[token];
  if (item < num_rotated) {
    rotate<kSize>(arguments, row, item / per_head, item % per_head * kSize, batch.positions[token], slot);
    return;
  }
  const int i = (item - num_rotated) * kSize;
  if (i >= kv_width || slot < 0) return;
  const T* from = row + std::int64_t{arguments.num_heads + arguments.num_kv_heads} * arguments.head_dim + i;
  const auto loaded = *reinterpret_cast<const Vector<T, kSize>*>(from);
  Vector<Kv, kSize> stored;
  for (int k = 0; k < kSize; ++k) {
    stored.values[k] = store_cast<Kv>(static_cast<float>(loaded.values[k]), arguments.v_scale);
  }
  *reinterpret_cast<Vector<Kv, kSize>*>(arguments.values + slot * kv_width + i) = stored;
}

template <int kSize, class T, class Kv>
void launch(const RopeArguments<T, Kv>& arguments, const DeviceBatch& batch, cudaStream_t stream) {
  const int items = (arguments.num_heads + arguments.num_kv_heads) * arguments.head_dim / 2 / kSize +
                    arguments.num_kv_heads * arguments.head_dim / kSize;
  constexpr std::int64_t kMaxGridY = 65535;
  for (std::int64_t begin = 0; begin < batch.num_tokens; begin += kMaxGridY) {
    RopeArguments<T, Kv> part = arguments;
    DeviceBatch tokens = batch;
    part.qkv += begin * (std::int64_t{arguments.num_heads} + 2 * arguments.num_kv_heads) * arguments.head_dim;
    tokens.slot_mapping += begin;
    tokens.positions += begin;
    launch_dependent(rope_kv_write_kernel<T, Kv, kSize>,
                     {.blocks = (items + kThreads - 1) / kThreads,
                      .threads = kThreads,
                      .blocks_y = static_cast<int>(std::min(kMaxGridY, batch.num_tokens - begin))},
                     stream, part, tokens);
  }
}

}  // namespace

void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Tensor& cos, const Tensor& sin, CudaKvCache& cache,
                   std::int64_t layer_idx, const DeviceBatch& batch, cudaStream_t stream) {
  nibble::check(qkv.width() == spec.q_width() + 2 * spec.kv_width() && qkv.num_tokens == batch.num_tokens,
                "cuda rope_kv_write: qkv [num_tokens, q_width + 2 kv_width]");
  if (qkv.num_tokens == 0) return;
  const KvSpec& layer = cache.layer(layer_idx);
  with_float_type(qkv.format.kind, "rope", [&](auto element) {
    with_dtype(layer.dtype, "rope", [&](auto stored) {
      using T = decltype(element);
      using Kv = decltype(stored);
      const RopeArguments<T, Kv> arguments{.qkv = device_data<T>(qkv),
                                           .cos = static_cast<const float*>(cos.view().data()),
                                           .sin = static_cast<const float*>(sin.view().data()),
                                           .keys = reinterpret_cast<Kv*>(cache.keys(layer_idx)),
                                           .values = reinterpret_cast<Kv*>(cache.values(layer_idx)),
                                           .k_scale = layer.k_scale,
                                           .v_scale = layer.v_scale,
                                           .num_heads = spec.num_heads,
                                           .num_kv_heads = spec.num_kv_heads,
                                           .head_dim = spec.head_dim};
      // Odd heads one element at a time: no model that we know has one.
      if (spec.head_dim % 16 == 0) return launch<8>(arguments, batch, stream);
      launch<1>(arguments, batch, stream);
    });
  });
}

}  // namespace nibble::backend::cuda
