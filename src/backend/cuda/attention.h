#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/kv_cache.h"
#include "backend/cuda/step_inputs.h"

/// Rotary embedding and attention over the paged cache, enqueued on a stream. Activations are f32, f16 or bf16 on the
/// device, sums are f32.
namespace nibble::backend::cuda {

inline constexpr std::int32_t kMaxHeadDim = 256;

/// Rotates q and k inside qkv [num_tokens, q_width + 2 kv_width] and writes k and v to their slots; k is rounded once.
///
/// cos, sin  f32 [max_positions, head_dim / 2] on the device
void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Tensor& cos, const Tensor& sin, CudaKvCache& cache,
                   std::int64_t layer_idx, const DeviceBatch& batch, cudaStream_t stream);

/// Causal attention of each token's q to its sequence's cache, the token itself included, within the sliding window.
/// The order of sums depends on nothing but the context's length: the same bits alone and in any batch.
///
/// out  [num_tokens, q_width]; its num_tokens is set
void attention(const Activation& qkv, const AttentionSpec& spec, const CudaKvCache& cache, std::int64_t layer_idx,
               const DeviceBatch& batch, Activation& out, cudaStream_t stream);

}  // namespace nibble::backend::cuda
