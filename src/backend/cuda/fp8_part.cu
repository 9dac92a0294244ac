#include "backend/cuda/device.h"
#include "backend/cuda/quantized_part.cuh"
#include "backend/cuda/quantized_parts.h"

namespace nibble::backend::cuda {
namespace {

/// Weight-only: activations stay float.
class Fp8Part final : public QuantizedPart<Fp8Reader> {
 public:
  Fp8Part(const weights::Fp8Weights& weights, cudaStream_t stream)
      : codes_(upload_codes({weights.weight.view().data(), DType::U8, weights.weight.shape()},
                            weights.weight.shape()[1], 8, stream)),
        scale_(to_device(weights.scale, stream)) {
    out_features_ = weights.weight.shape()[0];
    in_features_ = weights.weight.shape()[1];
    size_bytes_ = static_cast<std::int64_t>(codes_.size_bytes() + scale_.size_bytes());
    reader_ = {.codes = data_of<std::uint32_t>(codes_),
               .scale = data_of<float>(scale_),
               .num_chunks = num_chunks(in_features_),
               .scale_cols = 1,
               .block_rows = scale_.num_elements() == 1 ? static_cast<std::int32_t>(out_features_) : 1,
               .block_cols = static_cast<std::int32_t>(num_chunks(in_features_)) * kChunk};
    if (weights.block_size == 0) return;
    reader_.scale_cols = scale_.shape()[1];
    reader_.block_rows = static_cast<std::int32_t>(weights.block_size);
    reader_.block_cols = static_cast<std::int32_t>(weights.block_size);
  }

 private:
  Tensor codes_;
  Tensor scale_;
};

}  // namespace

std::unique_ptr<DevicePart> make_fp8_part(const weights::Fp8Weights& weights, cudaStream_t stream) {
  nibble::check(weights.block_size % kChunk == 0, "fp8 blocks are of 128");
  return std::make_unique<Fp8Part>(weights, stream);
}

}  // namespace nibble::backend::cuda
