#include "backend/cuda/dense_linear.h"

#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <variant>

#include "backend/cuda/device.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/rows.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kWarps = 8;  // of a block: one output each
// Up to so many tokens the weights are read once and the arithmetic hides behind that.
constexpr std::int64_t kMaxStreamedTokens = 8;

/// 16 bytes of consecutive elements.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

/// y[t, n] = Σ_k w[n, k] x[t, k], a warp an output; `in` is a multiple of Vector<T>::kSize, rows are aligned to it.
template <class T, class Out, int kTokens>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    stream_kernel(const T* w, const T* x, Out* y, std::int64_t in, std::int64_t out) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (n >= out) return;
  const auto* row = reinterpret_cast<const Vector<T>*>(w + n * in);
  const std::int64_t num_vectors = in / Vector<T>::kSize;
  float sums[kTokens] = {};
#pragma unroll 4
  for (std::int64_t v = threadIdx.x % kWarpSize; v < num_vectors; v += kWarpSize) {
    const Vector<T> weights = row[v];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Vector<T> inputs = reinterpret_cast<const Vector<T>*>(x + t * in)[v];
#pragma unroll
      for (int j = 0; j < Vector<T>::kSize; ++j) {
        sums[t] = fmaf(static_cast<float>(weights.values[j]), static_cast<float>(inputs.values[j]), sums[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum = warp_sum(sums[t]);
    if (threadIdx.x % kWarpSize == 0) y[t * out + n] = static_cast<Out>(sum);
  }
}

template <class T, class Out, int kTokens = 1>
void stream_weights(const T* w, const T* x, Out* y, std::int64_t num_tokens, std::int64_t in, std::int64_t out,
                    cudaStream_t stream) {
  if constexpr (kTokens < kMaxStreamedTokens) {
    if (num_tokens > kTokens) return stream_weights<T, Out, kTokens + 1>(w, x, y, num_tokens, in, out, stream);
  }
  const auto blocks = static_cast<unsigned>((out + kWarps - 1) / kWarps);
  stream_kernel<T, Out, kTokens><<<blocks, kWarps * kWarpSize, 0, stream>>>(w, x, y, in, out);
}

class DenseLinear final : public Linear {
 public:
  DenseLinear(Tensor weight, Tensor bias, ActivationKind format, CublasLt& cublas, cudaStream_t stream)
      : weight_(std::move(weight)), bias_(std::move(bias)), cublas_(cublas), stream_(stream) {
    in_features_ = weight_.shape()[1];
    out_features_ = weight_.shape()[0];
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes() + bias_.size_bytes());
    input_format_ = {.kind = format};
  }

  void forward(const Activation& x, Activation& y) const override {
    nibble::check(x.format.kind == input_format_.kind && x.width() == in_features_ && y.width() == out_features_ &&
                      y.capacity() >= x.num_tokens,
                  "cuda linear: x [num_tokens, in] in the linear's format, y [num_tokens, out]");
    y.num_tokens = x.num_tokens;
    if (x.num_tokens == 0) return;
    if (weight_.dtype() == DType::F16) {
      multiply<__half>(x, y);
    } else {
      multiply<float>(x, y);
    }
    if (!bias_.is_empty()) add_bias(bias_, y, stream_);
  }

 private:
  template <class T>
  void multiply(const Activation& x, Activation& y) const {
    if (x.num_tokens > kMaxStreamedTokens || in_features_ % Vector<T>::kSize != 0) {
      cublas_.multiply({x.num_tokens, out_features_, in_features_, weight_.dtype(), y.values.dtype()},
                       device_data<T>(x), weight_.view().data(), y.values.mutable_view().data(), stream_);
      return;
    }
    with_float_type(y.format.kind, "linear", [&](auto element) {
      using Out = decltype(element);
      stream_weights(static_cast<const T*>(weight_.view().data()), device_data<T>(x), device_data<Out>(y), x.num_tokens,
                     in_features_, out_features_, stream_);
    });
    check(cudaGetLastError());
  }

  Tensor weight_;  // [out, in] on the device
  Tensor bias_;    // f32 [out] on the device, or empty
  CublasLt& cublas_;
  cudaStream_t stream_;
};

/// Copies one part's weights to their rows. Errors: Unsupported.
void upload_rows(const Tensor& source, const LinearSpec& spec, MutableTensorView rows, cudaStream_t stream) {
  const Tensor converted = source.dtype() == rows.dtype() ? Tensor::borrow(source) : to_dtype(source, rows.dtype());
  if (rows.dtype() == DType::F16 && source.dtype() != DType::F16) {
    for (const Half value : converted.span<Half>()) {
      if (std::isfinite(to_float(value))) continue;
      throw Error(ErrorCode::Unsupported,
                  spec.name + ": holds weights beyond f16's range (65504), and CUDA runs f16 so far: use --device cpu");
    }
  }
  check(cudaMemcpyAsync(rows.data(), converted.view().data(), converted.size_bytes(), cudaMemcpyHostToDevice, stream));
  check(cudaStreamSynchronize(stream));
}

/// The parts' biases in order, zero where a part has none; empty where none has one.
Tensor join_biases(const std::vector<weights::LinearPart>& parts, std::int64_t out_features, cudaStream_t stream) {
  Tensor joined = Tensor::zeros(DType::F32, {out_features});
  bool has_any = false;
  std::int64_t first = 0;
  for (const weights::LinearPart& part : parts) {
    const std::int64_t count = weights::out_features(part.weights);
    if (!part.bias.is_empty()) {
      has_any = true;
      to_float32(part.bias.view().data(), part.bias.dtype(), count, joined.span<float>().data() + first);
    }
    first += count;
  }
  return has_any ? to_device(joined, stream) : Tensor();
}

}  // namespace

std::unique_ptr<Linear> make_dense_linear(const std::vector<weights::LinearPart>& parts, ActivationKind format,
                                          const LinearSpec& spec, CublasLt& cublas, cudaStream_t stream) {
  std::int64_t out_features = 0;
  for (const weights::LinearPart& part : parts) out_features += weights::out_features(part.weights);
  const std::int64_t in_features = weights::in_features(parts.front().weights);
  const DType dtype = format == ActivationKind::F32 ? DType::F32 : DType::F16;
  const auto elements = static_cast<std::size_t>(out_features * in_features);
  Tensor weight(device_buffer(elements * size_bytes(dtype)), dtype, {out_features, in_features});
  std::int64_t first = 0;
  for (const weights::LinearPart& part : parts) {
    const Tensor& source = std::get<weights::DenseWeights>(part.weights).weight;
    upload_rows(source, spec, weight.mutable_view().rows(first, source.shape()[0]), stream);
    first += source.shape()[0];
  }
  return std::make_unique<DenseLinear>(std::move(weight), join_biases(parts, out_features, stream), format, cublas,
                                       stream);
}

}  // namespace nibble::backend::cuda
