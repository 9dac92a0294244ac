#pragma once

#include "backend/backend.h"

/// Pieces that every backend on the host needs and that are not worth a kernel.
namespace nibble::backend {

/// MemTotal and MemAvailable of this machine, within the cgroup's limit.
Memory host_memory();

/// Of an activation's values.
DType values_dtype(ActivationKind kind);

/// Allocates values, scales and sums of an activation in host memory.
Activation make_host_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format);

/// What a GPU rounds the inputs of these weights to: per 128 inputs for blocks, by the static scale where there is one,
/// else per token.
ActivationFormat fp8_input_format(const weights::Fp8Weights& weights);

/// Copies float activations out and in, converting between float dtypes.
void read_host_activation(const Activation& from, Matrix<float> to);
void write_host_activation(Matrix<const float> from, Activation& to);

/// cos and sin of every (position, pair) as transformers computes them: f32 angle, then cos, sin, times the factor.
///
/// cos, sin  f32 [max_positions, head_dim / 2]
class HostRope final : public Rope {
 public:
  explicit HostRope(const RopeSpec& spec);
  std::span<const float> cos(std::int64_t position) const { return row(cos_, position); }
  std::span<const float> sin(std::int64_t position) const { return row(sin_, position); }

 private:
  std::span<const float> row(const Tensor& table, std::int64_t position) const {
    return table.view().rows(position, 1).span<float>();
  }
  Tensor cos_;
  Tensor sin_;
};

}  // namespace nibble::backend
