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

  /// Beyond, cuBLASLt reads f16 as fast.
  std::int64_t max_streamed_tokens() const override { return is_streamed_ ? 8 : 0; }
  const void* dense(ActivationKind, RowRange, void*, cudaStream_t) const override { return weight_.view().data(); }
  std::int64_t dense_rows(ActivationKind) const override { return out_features_; }
  std::size_t scratch_bytes(ActivationKind) const override { return 0; }

 private:
  Tensor weight_;  // [out, in]
};

}  // namespace

std::unique_ptr<DevicePart> make_dense_part(std::span<const weights::DenseWeights* const> parts, ActivationKind kind,
                                            cudaStream_t stream) {
  const DType dtype = kind == ActivationKind::F32 ? DType::F32 : DType::F16;
  std::vector<TensorView> rows;
  for (const auto* part : parts) {
    rows.emplace_back(part->weight);
    nibble::check(part->weight.device().kind == DeviceKind::Cuda && part->weight.dtype() == dtype,
                  "dense weights are on the device, in the dtype of the inputs");
  }
  if (!parts.front()->weight.owns()) return std::make_unique<DensePart>(Tensor::borrow(rows.front()));
  return std::make_unique<DensePart>(join_rows(rows, stream));
}

bool can_join(const weights::DenseWeights& a, const weights::DenseWeights& b) {
  return a.weight.owns() && b.weight.owns();
}

}  // namespace nibble::backend::cuda
