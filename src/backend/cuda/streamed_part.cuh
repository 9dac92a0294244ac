#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cuda/device.h"
#include "backend/cuda/device_part.h"
#include "backend/cuda/pack_weights.h"
#include "backend/cuda/stream_kernels.cuh"
#include "backend/cuda/wide_inputs.h"
#include "backend/cuda/wide_product.cuh"

namespace nibble::backend::cuda {

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.view().data());
}

/// A part whose weights its codec knows. A subclass owns the tensors that the codec points into, and writes them out
/// for `dense`. Exact (f32) inputs go through `dense` alone.
template <class Codec>
class StreamedPart : public DevicePart {
 public:
  std::int64_t max_streamed_tokens() const override {
    if (!is_streamed_) return 0;
    return arrived_.size_bytes() > 0 ? kMaxWideTokens : kMaxStreamedTokens;
  }

  void multiply(const Activation& x, const OutputColumns& y, void* scratch, cudaStream_t stream) const override {
    nibble::check(x.format.kind == ActivationKind::F16 && x.width() == in_features_, "cuda: a streamed product of f16");
    if constexpr (kIsWide<Codec>) {
      if (x.num_tokens > kMaxStreamedTokens) return multiply_many(x, y, scratch, stream);
    }
    StreamProduct product;
    product.x = device_data<__half>(x);
    product.x_stride = product.num_cols = static_cast<std::int32_t>(in_features_);
    product.num_tokens = static_cast<std::int32_t>(x.num_tokens);
    product.y = y.data;
    product.y_stride = y.stride;
    product.has_float_y = y.kind == ActivationKind::F32;
    product.num_rows = static_cast<std::int32_t>(out_features_);
    product.num_blocks = num_blocks_;
    if (gathers()) {
      const GatherShape shape{x.num_tokens, in_features_, packed_width()};
      gather_columns(product.x, columns_, shape, scratch, stream);
      product.x = static_cast<const __half*>(scratch);
      product.x_stride = product.num_cols = static_cast<std::int32_t>(shape.width);
    }
    multiply_streamed(codec_, product, choose_stream_config(codec_, product), stream);
  }

  /// So many that scratch stays small beside a large model's KV cache, and enough for cuBLASLt's full speed.
  std::int64_t dense_rows(ActivationKind kind) const override {
    constexpr std::int64_t kBytes = std::int64_t{256} << 20;
    constexpr std::int64_t kMultiple = 1024;  // of all kernels' tiles
    const std::int64_t rows = kBytes / (in_features_ * element_bytes(kind)) / kMultiple * kMultiple;
    return std::min(out_features_, std::max(rows, kMultiple));
  }

  std::size_t scratch_bytes(ActivationKind kind) const override {
    const std::int64_t weights = dense_rows(kind) * in_features_ * element_bytes(kind);
    const std::int64_t inputs = gathers() ? kMaxStreamedTokens * packed_width() * 2 : 0;
    const std::int64_t many = arrived_.size_bytes() > 0 ? wide_inputs_bytes() + wide_partial_bytes() : 0;
    return static_cast<std::size_t>(std::max({weights, inputs, many}));
  }

 protected:
  static std::int64_t element_bytes(ActivationKind kind) { return kind == ActivationKind::F32 ? 4 : 2; }

  /// Enables products of up to kMaxWideTokens where the GPU has them.
  void make_wide(cudaStream_t stream) {
    if (!is_streamed_ || !has_warpgroup_products()) return;
    arrived_ = device_buffer(static_cast<std::size_t>(num_multiprocessors()) * sizeof(std::uint32_t));
    check(cudaMemsetAsync(arrived_.data(), 0, arrived_.size_bytes(), stream));
  }

  /// Inputs in another order, or rows of them that are not aligned.
  bool gathers() const { return !columns_.is_empty() || in_features_ % 8 != 0; }
  std::int64_t packed_width() const { return std::int64_t{num_blocks_} * kBlockCols; }

  std::int64_t wide_inputs_bytes() const { return kMaxWideTokens * packed_width() * 2; }

  void multiply_many(const Activation& x, const OutputColumns& y, void* scratch, cudaStream_t stream) const {
    arrange_inputs(x.values.view().data(), columns_, {x.num_tokens, in_features_, packed_width()}, scratch, stream);
    multiply_wide(codec_, scratch,
                  {.num_tokens = static_cast<std::int32_t>(x.num_tokens),
                   .num_rows = static_cast<std::int32_t>(out_features_),
                   .num_tiles = num_tiles_,
                   .num_blocks = num_blocks_,
                   .y = y.data,
                   .y_stride = y.stride,
                   .has_float_y = y.kind == ActivationKind::F32,
                   .partials = reinterpret_cast<float*>(static_cast<std::byte*>(scratch) + wide_inputs_bytes()),
                   .arrived = static_cast<std::uint32_t*>(arrived_.data())},
                  stream);
  }

  Codec codec_;
  bool is_streamed_ = true;
  std::int64_t in_features_ = 0;
  std::int32_t num_tiles_ = 0;  // packed
  std::int32_t num_blocks_ = 0;
  mutable Buffer arrived_;  // of WideProduct; empty: few tokens only
  Tensor columns_;          // i32 [packed_width()] or empty: DeviceColumns
};

}  // namespace nibble::backend::cuda
