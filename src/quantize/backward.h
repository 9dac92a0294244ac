#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "backend/host_ops.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

/// Gradients of a decoder block's operations with respect to their activations; weights are constants. Written out by
/// hand: there are four, and no autograd framework is linked. Everything is f32 on the host; each token's result is
/// computed in one order, whatever the number of threads. `d_name` is ∂L/∂name.
namespace nibble::quantize {

/// y = weight * x / sqrt(mean(x²) + eps). Adds ∂L/∂x to `gradient`: the residual stream flows past the norm as well.
/// x, d_y, gradient [tokens, width]; weight [width]
void rms_norm_backward(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<const float> d_y,
                       Matrix<float> gradient, ThreadPool& pool);

/// out = silu(gate) * up.   gate_up, d_gate_up [tokens, 2 * width]; d_out [tokens, width]
void silu_mul_backward(Matrix<const float> gate_up, Matrix<const float> d_out, Matrix<float> d_gate_up,
                       ThreadPool& pool);

/// Sequences that follow one another in the rows of an activation, each from position 0: sequence s has rows
/// [starts[s], starts[s + 1]).
using SequenceStarts = std::span<const std::int32_t>;

/// Causal attention of whole sequences with rotary embedding, key-value heads shared by groups of query heads.
/// qkv    [tokens, q_width + 2 kv_width]   q and k rotated
/// d_out  [tokens, q_width]
/// d_qkv  [tokens, q_width + 2 kv_width]   with respect to q, k, v before rotation
void attention_backward(Matrix<const float> qkv, const backend::AttentionSpec& spec, const backend::HostRope& rope,
                        SequenceStarts starts, Matrix<const float> d_out, Matrix<float> d_qkv, ThreadPool& pool);

}  // namespace nibble::quantize
