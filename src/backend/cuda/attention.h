#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/attention_plan.h"
#include "backend/cuda/kv_cache.h"
#include "backend/cuda/step_inputs.h"

/// Rotary embedding and attention over the paged cache, enqueued on a stream. Activations are f32, f16 or bf16 on the
/// device, sums are f32.
namespace nibble::backend::cuda {

inline constexpr std::int32_t kMaxHeadDim = 256;

/// Rotates q and k inside qkv [num_tokens, q_width + 2 kv_width] and writes k and v to their slots; k is rounded once.
/// Tokens of slot -1 pad the batch: nothing of them is written to the cache.
///
/// cos, sin  f32 [max_positions, head_dim / 2] on the device
void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Tensor& cos, const Tensor& sin, CudaKvCache& cache,
                   std::int64_t layer_idx, const DeviceBatch& batch, cudaStream_t stream);

/// Causal attention of each token's q to its sequence's cache, the token itself included, within the sliding window;
/// zeros for tokens that pad the batch (context_len 0, slot -1). FlashInfer's kernels where AttentionPlan has them for
/// the layer: f16 activations, an f16 or fp8 cache, head_dim 64, 128 or 256; else a plain kernel that takes everything:
/// the exact mode, odd heads. The same bits in every run.
///
/// out  [num_tokens, q_width]; its num_tokens is set
void attention(const Activation& qkv, const AttentionSpec& spec, const CudaKvCache& cache, std::int64_t layer_idx,
               const DeviceBatch& batch, const AttentionPlan& plan, Activation& out, cudaStream_t stream);

}  // namespace nibble::backend::cuda
