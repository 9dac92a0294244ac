#pragma once

#include <utility>

#include "backend/cuda/device_part.h"
#include "backend/cuda/stream_kernels.cuh"

namespace nibble::backend::cuda {

/// A part whose weights only its reader knows. A subclass owns the tensors that it points into.
template <class Reader>
class QuantizedPart : public DevicePart {
 public:
  std::int64_t max_streamed_tokens() const override { return kMaxStreamedTokens; }
  void multiply(const Activation& x, const OutputColumns& y, cudaStream_t stream) const override {
    multiply_streamed(reader_, x, out_features_, y, stream);
  }
  const void* dense(ActivationKind kind, void* scratch, cudaStream_t stream) const override {
    write_dense(reader_, in_features_, out_features_, kind, scratch, stream);
    return scratch;
  }
  std::size_t scratch_bytes(ActivationKind kind) const override {
    return static_cast<std::size_t>(out_features_ * in_features_) * (kind == ActivationKind::F32 ? 4 : 2);
  }

 protected:
  Reader reader_;
  std::int64_t in_features_ = 0;
};

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.view().data());
}

}  // namespace nibble::backend::cuda
