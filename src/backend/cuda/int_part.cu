#include <algorithm>
#include <string>

#include "backend/cuda/device.h"
#include "backend/cuda/quantized_part.cuh"
#include "backend/cuda/quantized_parts.h"

namespace nibble::backend::cuda {
namespace {

/// The group of each input, padded to whole chunks.
Tensor upload_group_index(const weights::GroupedIntWeights& weights, cudaStream_t stream) {
  Tensor padded = Tensor::zeros(DType::I32, {kChunk * num_chunks(weights.in_features)});
  std::ranges::copy(weights.g_idx.span<std::int32_t>(), padded.span<std::int32_t>().begin());
  return to_device(padded, stream);
}

template <int kBits>
class IntPart final : public QuantizedPart<IntReader<kBits>> {
 public:
  IntPart(const weights::GroupedIntWeights& weights, cudaStream_t stream)
      : codes_(upload_codes(weights.codes, weights.in_features, kBits, stream)),
        scales_(weights.scales.dtype() == DType::F16 ? to_device(weights.scales, stream)
                                                     : to_device(to_dtype(weights.scales, DType::F32), stream)),
        zeros_(to_device(weights.zeros, stream)) {
    if (weights.has_g_idx()) g_idx_ = upload_group_index(weights, stream);
    this->out_features_ = weights.out_features;
    this->in_features_ = weights.in_features;
    this->size_bytes_ = static_cast<std::int64_t>(codes_.size_bytes() + scales_.size_bytes() + zeros_.size_bytes() +
                                                  g_idx_.size_bytes());
    this->reader_ = {.codes = data_of<std::uint32_t>(codes_),
                     .scales = scales_.view().data(),
                     .zeros = data_of<std::int16_t>(zeros_),
                     .g_idx = data_of<std::int32_t>(g_idx_),
                     .num_chunks = num_chunks(weights.in_features),
                     .num_groups = weights.num_groups(),
                     .group_size = static_cast<std::int32_t>(weights.group_size),
                     .first_group_offset = static_cast<std::int32_t>(weights.first_group_offset),
                     .has_half_scales = scales_.dtype() == DType::F16};
  }

 private:
  Tensor codes_;
  Tensor scales_;
  Tensor zeros_;
  Tensor g_idx_;
};

}  // namespace

std::unique_ptr<DevicePart> make_int_part(const weights::GroupedIntWeights& weights, cudaStream_t stream) {
  switch (weights.bits) {
    case 2: return std::make_unique<IntPart<2>>(weights, stream);
    case 3: return std::make_unique<IntPart<3>>(weights, stream);
    case 4: return std::make_unique<IntPart<4>>(weights, stream);
    case 8: return std::make_unique<IntPart<8>>(weights, stream);
    default: break;
  }
  throw Error(ErrorCode::Unsupported, "integers of " + std::to_string(weights.bits) + " bits have no CUDA kernel");
}

}  // namespace nibble::backend::cuda
