#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/backend.h"

/// Operations on rows of activations, enqueued on a stream. Activations are f32, f16 or bf16 on the device; sums and
/// products are f32, rounded once. Errors: Unsupported for another format or an input_permutation.
namespace nibble::backend::cuda {

/// hidden[t] = table[tokens[t]].  table [vocab_size, width] f32, f16 or bf16; tokens i32 [num_tokens] on the device.
void embed(const Tensor& table, const std::int32_t* tokens, std::int64_t num_tokens, Activation& hidden,
           cudaStream_t stream);

/// hidden += delta
void add(Activation& hidden, const Activation& delta, cudaStream_t stream);

/// out = silu(gate) * up of gate_up [num_tokens, 2 * width].
void silu_mul(const Activation& gate_up, Activation& out, cudaStream_t stream);

/// out[r] = hidden[rows[r]].  rows i32 [num_rows] on the device.
void gather_rows(const Activation& hidden, const std::int32_t* rows, std::int64_t num_rows, Activation& out,
                 cudaStream_t stream);

/// y[t] += bias.  bias f32 [width] on the device.
void add_bias(const Tensor& bias, Activation& y, cudaStream_t stream);

}  // namespace nibble::backend::cuda
