#include <cmath>
#include <utility>

#include "backend/cuda/device.h"
#include "backend/cuda/device_part.h"
#include "backend/cuda/stream_kernels.cuh"

namespace nibble::backend::cuda {
namespace {

/// weights::DenseWeights in f16 or f32, rows as they are: the last chunk may end early.
template <class T>
struct DenseReader {
  const T* weights;  // [out, in]
  std::int64_t in;

  __device__ void read(std::int64_t n, std::int64_t chunk, float (&w)[kChunk]) const {
    const T* from = weights + n * in + chunk * kChunk;
    if (in % kChunk == 0) {
#pragma unroll
      for (int v = 0; v < kChunk / Vector<T>::kSize; ++v) {
        const Vector<T> values = reinterpret_cast<const Vector<T>*>(from)[v];
#pragma unroll
        for (int j = 0; j < Vector<T>::kSize; ++j) w[v * Vector<T>::kSize + j] = static_cast<float>(values.values[j]);
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) w[j] = chunk * kChunk + j < in ? static_cast<float>(from[j]) : 0;
  }
};

class DensePart final : public DevicePart {
 public:
  explicit DensePart(Tensor on_device) : weight_(std::move(on_device)) {
    out_features_ = weight_.shape()[0];
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes());
  }

  std::int64_t max_streamed_tokens() const override { return kMaxStreamedTokens; }
  void multiply(const Activation& x, const OutputColumns& y, cudaStream_t stream) const override {
    if (weight_.dtype() == DType::F32) {
      multiply_streamed(reader<float>(), x, out_features_, y, stream);
    } else {
      multiply_streamed(reader<__half>(), x, out_features_, y, stream);
    }
  }
  const void* dense(ActivationKind, void*, cudaStream_t) const override { return weight_.view().data(); }
  std::size_t scratch_bytes(ActivationKind) const override { return 0; }

 private:
  template <class T>
  DenseReader<T> reader() const {
    return {static_cast<const T*>(weight_.view().data()), weight_.shape()[1]};
  }

  Tensor weight_;  // [out, in]
};

}  // namespace

std::unique_ptr<DevicePart> make_dense_part(const weights::DenseWeights& weights, ActivationKind kind,
                                            cudaStream_t stream) {
  const DType dtype = kind == ActivationKind::F32 ? DType::F32 : DType::F16;
  if (weights.weight.device().kind == DeviceKind::Cuda && !weights.weight.owns()) {
    nibble::check(weights.weight.dtype() == dtype, "dense weights on the device have the dtype of the inputs");
    return std::make_unique<DensePart>(Tensor::borrow(weights.weight));
  }
  if (weights.weight.dtype() == dtype) return std::make_unique<DensePart>(to_device(weights.weight, stream));
  const Tensor converted = to_dtype(weights.weight, dtype);
  if (dtype == DType::F16) {
    for (const Half value : converted.span<Half>()) {
      if (std::isfinite(to_float(value))) continue;
      throw Error(ErrorCode::Unsupported,
                  "holds weights beyond f16's range (65504), and CUDA runs f16 so far: use --device cpu");
    }
  }
  return std::make_unique<DensePart>(to_device(converted, stream));
}

}  // namespace nibble::backend::cuda
