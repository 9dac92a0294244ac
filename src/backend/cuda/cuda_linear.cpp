#include "backend/cuda/cuda_linear.h"

#include <algorithm>
#include <span>
#include <utility>
#include <variant>

#include "backend/cuda/device.h"
#include "backend/cuda/device_part.h"
#include "backend/cuda/rows.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

DType dtype_of_kind(ActivationKind kind) {
  return kind == ActivationKind::F32 ? DType::F32 : DType::F16;
}

/// The first of `parts` and those behind it that become one with it.
template <class Weights>
std::vector<const Weights*> joinable(std::span<const weights::LinearPart> parts) {
  std::vector<const Weights*> joined{&std::get<Weights>(parts.front().weights)};
  for (const weights::LinearPart& part : parts.subspan(1)) {
    const auto* next = std::get_if<Weights>(&part.weights);
    if (next == nullptr || !can_join(*joined.front(), *next)) break;
    joined.push_back(next);
  }
  return joined;
}

/// The first of `parts` on the device, with those behind it that join it; drops them from `parts`.
std::unique_ptr<DevicePart> take_part(std::span<const weights::LinearPart>& parts, ActivationKind format,
                                      cudaStream_t stream) {
  const weights::LinearWeights& first = parts.front().weights;
  if (std::holds_alternative<weights::GroupedIntWeights>(first)) {
    const auto joined = joinable<weights::GroupedIntWeights>(parts);
    parts = parts.subspan(joined.size());
    return make_int_part(joined, format, stream);
  }
  if (std::holds_alternative<weights::CodebookWeights>(first)) {
    const auto joined = joinable<weights::CodebookWeights>(parts);
    parts = parts.subspan(joined.size());
    return make_codebook_part(joined, format, stream);
  }
  parts = parts.subspan(1);
  if (const auto* fp8 = std::get_if<weights::Fp8Weights>(&first)) return make_fp8_part(*fp8, format, stream);
  return make_dense_part(std::get<weights::DenseWeights>(first), format, stream);
}

/// The parts' biases in order, zero where a part has none; empty where none has one.
Tensor join_biases(const std::vector<weights::LinearPart>& parts, std::int64_t out_features, cudaStream_t stream) {
  if (std::ranges::all_of(parts, [](const auto& part) { return part.bias.is_empty(); })) return {};
  Tensor joined = Tensor::zeros(DType::F32, {out_features});
  auto next = joined.span<float>().begin();
  for (const weights::LinearPart& part : parts) {
    if (!part.bias.is_empty()) std::ranges::copy(part.bias.span<float>(), next);
    next += weights::out_features(part.weights);
  }
  return to_device(joined, stream);
}

class CudaLinear final : public Linear {
 public:
  CudaLinear(const std::vector<weights::LinearPart>& parts, ActivationKind format, CublasLt& cublas, Scratch& scratch,
             cudaStream_t stream)
      : cublas_(cublas), scratch_(scratch), stream_(stream) {
    in_features_ = weights::in_features(parts.front().weights);
    input_format_ = {.kind = format};
    for (const weights::LinearPart& part : parts) {
      nibble::check(weights::in_features(part.weights) == in_features_, "parts of a fused linear share their input");
    }
    for (std::span<const weights::LinearPart> rest = parts; !rest.empty();) {
      parts_.push_back(take_part(rest, format, stream));
      out_features_ += parts_.back()->out_features();
      size_bytes_ += parts_.back()->size_bytes();
      scratch.reserve(parts_.back()->scratch_bytes(format));
    }
    bias_ = join_biases(parts, out_features_, stream);
    size_bytes_ += static_cast<std::int64_t>(bias_.size_bytes());
  }

  void forward(const Activation& x, Activation& y) const override {
    nibble::check(x.format.kind == input_format_.kind && x.width() == in_features_ && y.width() == out_features_ &&
                      y.capacity() >= x.num_tokens,
                  "cuda linear: x [num_tokens, in] in the linear's format, y [num_tokens, out]");
    y.num_tokens = x.num_tokens;
    if (x.num_tokens == 0) return;
    std::int64_t first_col = 0;
    for (const auto& part : parts_) {
      multiply(*part, x, y, first_col);
      first_col += part->out_features();
    }
    if (!bias_.is_empty()) add_bias(bias_, y, stream_);
  }

 private:
  void multiply(const DevicePart& part, const Activation& x, Activation& y, std::int64_t first_col) const {
    auto* columns = static_cast<std::byte*>(y.values.mutable_view().data()) +
                    static_cast<std::size_t>(first_col) * nibble::size_bytes(y.values.dtype());
    if (x.num_tokens <= part.max_streamed_tokens()) {
      part.multiply(x, {columns, out_features_, y.format.kind}, scratch_.data(), stream_);
      return;
    }
    const void* weights = part.dense(x.format.kind, scratch_.data(), stream_);
    cublas_.multiply({.m = x.num_tokens,
                      .n = part.out_features(),
                      .k = in_features_,
                      .y_stride = out_features_,
                      .input = dtype_of_kind(x.format.kind),
                      .output = y.values.dtype()},
                     x.values.view().data(), weights, columns, stream_);
  }

  std::vector<std::unique_ptr<DevicePart>> parts_;
  Tensor bias_;  // f32 [out] on the device, or empty
  CublasLt& cublas_;
  Scratch& scratch_;
  cudaStream_t stream_;
};

/// Float parts as one: fewer and larger products.
std::vector<weights::LinearPart> join_dense(const std::vector<weights::LinearPart>& parts) {
  std::int64_t out_features = 0;
  for (const weights::LinearPart& part : parts) out_features += weights::out_features(part.weights);
  const Tensor& first = std::get<weights::DenseWeights>(parts.front().weights).weight;
  Tensor joined = Tensor::empty(first.dtype(), {out_features, first.shape()[1]});
  Tensor bias = Tensor::zeros(DType::F32, {out_features});
  bool has_bias = false;
  std::int64_t row = 0;
  for (const weights::LinearPart& part : parts) {
    const Tensor& weight = std::get<weights::DenseWeights>(part.weights).weight;
    convert(weight, joined.mutable_view().rows(row, weight.shape()[0]));
    if (!part.bias.is_empty()) std::ranges::copy(part.bias.span<float>(), bias.span<float>().begin() + row);
    has_bias = has_bias || !part.bias.is_empty();
    row += weight.shape()[0];
  }
  std::vector<weights::LinearPart> one;
  one.push_back({weights::DenseWeights{std::move(joined)}, has_bias ? std::move(bias) : Tensor()});
  return one;
}

bool can_join(const std::vector<weights::LinearPart>& parts) {
  if (parts.size() < 2) return false;
  const auto* first = std::get_if<weights::DenseWeights>(&parts.front().weights);
  return first != nullptr && std::ranges::all_of(parts, [&](const weights::LinearPart& part) {
           const auto* dense = std::get_if<weights::DenseWeights>(&part.weights);
           return dense != nullptr && dense->weight.dtype() == first->weight.dtype();
         });
}

}  // namespace

void Scratch::reserve(std::size_t size_bytes) {
  if (buffer_.size_bytes() >= size_bytes) return;
  buffer_ = {};  // first: both may not fit
  buffer_ = device_buffer(size_bytes);
}

std::unique_ptr<Linear> make_cuda_linear(const std::vector<weights::LinearPart>& parts, ActivationKind format,
                                         const LinearSpec& spec, CublasLt& cublas, Scratch& scratch,
                                         cudaStream_t stream) {
  try {
    if (can_join(parts)) return std::make_unique<CudaLinear>(join_dense(parts), format, cublas, scratch, stream);
    return std::make_unique<CudaLinear>(parts, format, cublas, scratch, stream);
  } catch (const Error& error) {
    throw error.in(spec.name);
  }
}

}  // namespace nibble::backend::cuda
