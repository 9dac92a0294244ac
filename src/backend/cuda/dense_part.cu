#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "backend/cuda/joined_rows.h"
#include "backend/cuda/streamed_part.cuh"

namespace nibble::backend::cuda {
namespace {

class DensePart final : public StreamedPart<DenseCodec> {
 public:
  explicit DensePart(Tensor on_device) : weight_(std::move(on_device)) {
    out_features_ = weight_.shape()[0];
    in_features_ = weight_.shape()[1];
    num_blocks_ = plan_columns(in_features_).num_blocks;
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes());
    // Copies of 16 bytes want aligned rows; cuBLASLt takes others.
    is_streamed_ = weight_.dtype() == DType::F16 && in_features_ % 8 == 0;
    codec_.weights = data_of<__half>(weight_);
    codec_.in_features = static_cast<std::int32_t>(in_features_);
    codec_.out_features = static_cast<std::int32_t>(out_features_);
  }

  const void* dense(ActivationKind, RowRange, void*, cudaStream_t) const override { return weight_.view().data(); }
  std::int64_t dense_rows(ActivationKind) const override { return out_features_; }
  std::size_t scratch_bytes(ActivationKind) const override { return 0; }

 private:
  Tensor weight_;  // [out, in]
};

/// The weight itself where it has the dtype. Errors: Unsupported where f16 cannot hold one.
Tensor convert_checked(const Tensor& weight, DType dtype) {
  if (weight.dtype() == dtype) return Tensor::borrow(weight);
  Tensor converted = to_dtype(weight, dtype);
  if (dtype != DType::F16) return converted;
  for (const Half value : converted.span<Half>()) {
    if (std::isfinite(to_float(value))) continue;
    throw Error(ErrorCode::Unsupported,
                "holds weights beyond f16's range (65504), and CUDA runs f16 so far: use --device cpu");
  }
  return converted;
}

}  // namespace

std::unique_ptr<DevicePart> make_dense_part(std::span<const weights::DenseWeights* const> parts, ActivationKind kind,
                                            cudaStream_t stream) {
  const DType dtype = kind == ActivationKind::F32 ? DType::F32 : DType::F16;
  const Tensor& first = parts.front()->weight;
  if (first.device().kind == DeviceKind::Cuda && !first.owns()) {
    nibble::check(first.dtype() == dtype, "dense weights on the device have the dtype of the inputs");
    return std::make_unique<DensePart>(Tensor::borrow(first));
  }
  std::vector<Tensor> converted;
  for (const auto* part : parts) converted.push_back(convert_checked(part->weight, dtype));
  return std::make_unique<DensePart>(join_rows(std::vector<TensorView>(converted.begin(), converted.end()), stream));
}

bool can_join(const weights::DenseWeights& a, const weights::DenseWeights& b) {
  return a.weight.device().kind == DeviceKind::Host && b.weight.device().kind == DeviceKind::Host;
}

}  // namespace nibble::backend::cuda
