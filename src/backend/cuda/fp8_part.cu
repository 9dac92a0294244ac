#include <algorithm>
#include <optional>

#include "backend/cuda/device.h"
#include "backend/cuda/quantized_part.cuh"
#include "backend/cuda/quantized_parts.h"
#include "weights/fp8.h"

namespace nibble::backend::cuda {
namespace {

// Columns of block scales: cuBLASLt wants whole fours.
constexpr std::int64_t kScaleColumns = 4;

/// A scale an output row, or a row of `stride` scales a row of blocks.
Tensor expand_scale(const weights::Fp8Weights& weights, std::int64_t stride) {
  if (weights.block_size == 0) {
    if (weights.scale.num_elements() > 1) return Tensor::copy_of(weights.scale);
    Tensor rows = Tensor::empty(DType::F32, {weights.weight.shape()[0]});
    std::ranges::fill(rows.span<float>(), weights.scale.span<float>()[0]);
    return rows;
  }
  Tensor blocks = Tensor::zeros(DType::F32, {weights.scale.shape()[0], stride});
  for (std::int64_t r = 0; r < blocks.shape()[0]; ++r) {
    std::ranges::copy(weights.scale.matrix<float>().row_span(r), blocks.matrix<float>().row(r));
  }
  return blocks;
}

/// Rows of codes that serve the streaming kernels, with float inputs, and cuBLASLt, with FP8 inputs.
class Fp8Part final : public QuantizedPart<Fp8Reader> {
 public:
  Fp8Part(const weights::Fp8Weights& weights, cudaStream_t stream)
      : codes_(upload_codes({weights.weight.view().data(), DType::U8, weights.weight.shape(), weights.weight.device()},
                            weights.weight.shape()[1], 8, stream)),
        is_per_tensor_(weights.scale.num_elements() == 1) {
    out_features_ = weights.weight.shape()[0];
    in_features_ = weights.weight.shape()[1];
    if (weights.block_size > 0) {
      scale_stride_ = (weights.scale.shape()[1] + kScaleColumns - 1) / kScaleColumns * kScaleColumns;
    }
    scale_ = to_device(expand_scale(weights, scale_stride_), stream);
    size_bytes_ = static_cast<std::int64_t>(codes_.size_bytes() + scale_.size_bytes());
    reader_ = {.codes = data_of<std::uint32_t>(codes_),
               .scale = data_of<float>(scale_),
               .num_chunks = num_chunks(in_features_),
               .scale_cols = 1,
               .block_rows = 1,
               .block_cols = static_cast<std::int32_t>(num_chunks(in_features_)) * kChunk};
    if (weights.block_size == 0) return;
    reader_.scale_cols = scale_stride_;
    reader_.block_rows = static_cast<std::int32_t>(weights.block_size);
    reader_.block_cols = static_cast<std::int32_t>(weights.block_size);
  }

  std::optional<Fp8Operand> fp8_operand() const override {
    return Fp8Operand{.codes = codes_.view().data(),
                      .row_bytes = codes_.shape()[1],
                      .scale = data_of<float>(scale_),
                      .scale_stride = scale_stride_,
                      .is_per_tensor = is_per_tensor_};
  }

 private:
  Tensor codes_;  // e4m3 [out, padded in]
  Tensor scale_;
  std::int64_t scale_stride_ = 0;
  bool is_per_tensor_ = false;
};

}  // namespace

std::unique_ptr<DevicePart> make_fp8_part(const weights::Fp8Weights& weights, cudaStream_t stream) {
  nibble::check(weights.block_size == 0 || weights.block_size == weights::kFp8BlockSize, "fp8 blocks are of 128");
  return std::make_unique<Fp8Part>(weights, stream);
}

}  // namespace nibble::backend::cuda
