#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "backend/backend.h"

namespace nibble::backend::cuda {

/// Columns [first_col, first_col + out_features of a part) of a linear's output.
struct OutputColumns {
  void* data = nullptr;  // [num_tokens, stride], at the part's first column
  std::int64_t stride = 0;
  ActivationKind kind = ActivationKind::F16;
};

/// One part of a fused linear on the device, in the layout of its kernels. Immutable.
class DevicePart {
 public:
  virtual ~DevicePart() = default;
  std::int64_t out_features() const { return out_features_; }
  std::int64_t size_bytes() const { return size_bytes_; }

  /// Whether `multiply` runs up to this many tokens by itself, reading the weights once.
  virtual std::int64_t max_streamed_tokens() const = 0;
  /// y = W x for x.num_tokens of at most max_streamed_tokens().
  virtual void multiply(const Activation& x, const OutputColumns& y, cudaStream_t stream) const = 0;

  /// The weights [out_features, in_features] in the dtype of `kind` (F16 or F32): where the part holds them, else
  /// computed into `scratch`.
  virtual const void* dense(ActivationKind kind, void* scratch, cudaStream_t stream) const = 0;
  /// Bytes of scratch that `dense` needs.
  virtual std::size_t scratch_bytes(ActivationKind kind) const = 0;

 protected:
  std::int64_t out_features_ = 0;
  std::int64_t size_bytes_ = 0;
};

/// Float weights in the dtype of `kind`. Errors: Unsupported where one lies beyond f16's range; OutOfMemory.
std::unique_ptr<DevicePart> make_dense_part(const weights::DenseWeights& weights, ActivationKind kind,
                                            cudaStream_t stream);
/// Integers of 2, 3, 4 and 8 bits, with or without g_idx. Errors: OutOfMemory.
std::unique_ptr<DevicePart> make_int_part(const weights::GroupedIntWeights& weights, cudaStream_t stream);
std::unique_ptr<DevicePart> make_fp8_part(const weights::Fp8Weights& weights, cudaStream_t stream);

}  // namespace nibble::backend::cuda
