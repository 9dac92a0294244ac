#include <algorithm>
#include <optional>

#include "backend/cuda/dense_kernels.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/quantized_parts.h"
#include "backend/cuda/streamed_part.cuh"
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

/// to[row, col] = codes[row, col] * scale, a thread eight columns.
template <bool kBlockScales, class To>
__global__ void dense_fp8_kernel(const Fp8Codec<kBlockScales> codec, int in_features, To* to) {
  const int col = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const auto row = static_cast<int>(blockIdx.x);
  if (col >= in_features) return;
  const uint2 words = *reinterpret_cast<const uint2*>(codec.codes + row * codec.row_bytes + col);
  const float scale = kBlockScales ? codec.scale[row / 128 * codec.scale_cols + col / 128] : codec.row_scale(row);
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    __nv_fp8_e4m3 code;
    code.__x = static_cast<__nv_fp8_storage_t>((i < 4 ? words.x : words.y) >> (8 * (i % 4)));
    values[i] = scale * static_cast<float>(code);
  }
  To* row_to = to + static_cast<std::int64_t>(row) * in_features;
  if (in_features % 8 == 0) {
    store_eight(row_to + col, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (col + i < in_features) row_to[col + i] = static_cast<To>(values[i]);
  }
}

/// Rows of codes that serve the streaming kernels, with float inputs, and cuBLASLt, with FP8 inputs.
template <bool kBlockScales>
class Fp8Part final : public StreamedPart<Fp8Codec<kBlockScales>> {
 public:
  Fp8Part(const weights::Fp8Weights& weights, ActivationKind kind, cudaStream_t stream)
      : codes_(upload_codes({weights.weight.view().data(), DType::U8, weights.weight.shape(), weights.weight.device()},
                            weights.weight.shape()[1], 8, stream)),
        is_per_tensor_(weights.scale.num_elements() == 1) {
    if (kBlockScales) {
      scale_stride_ = (weights.scale.shape()[1] + kScaleColumns - 1) / kScaleColumns * kScaleColumns;
    }
    scale_ = to_device(expand_scale(weights, scale_stride_), stream);
    this->is_streamed_ = kind == ActivationKind::F16;
    this->out_features_ = weights.weight.shape()[0];
    this->in_features_ = weights.weight.shape()[1];
    this->num_blocks_ = plan_columns(this->in_features_).num_blocks;
    this->size_bytes_ = static_cast<std::int64_t>(codes_.size_bytes() + scale_.size_bytes());
    this->codec_ = {.codes = data_of<std::byte>(codes_),
                    .row_bytes = codes_.shape()[1],
                    .out_features = static_cast<std::int32_t>(this->out_features_),
                    .scale = data_of<float>(scale_),
                    .scale_cols = static_cast<std::int32_t>(scale_stride_)};
  }

  const void* dense(ActivationKind kind, void* scratch, cudaStream_t stream) const override {
    if (kind == ActivationKind::F32) {
      write_dense(static_cast<float*>(scratch), stream);
    } else {
      write_dense(static_cast<__half*>(scratch), stream);
    }
    return scratch;
  }

  std::optional<Fp8Operand> fp8_operand() const override {
    return Fp8Operand{.codes = codes_.view().data(),
                      .row_bytes = codes_.shape()[1],
                      .scale = data_of<float>(scale_),
                      .scale_stride = scale_stride_,
                      .is_per_tensor = is_per_tensor_};
  }

 private:
  template <class To>
  void write_dense(To* to, cudaStream_t stream) const {
    constexpr unsigned kThreads = 128;
    const auto vectors = static_cast<unsigned>((this->in_features_ + 7) / 8);
    const dim3 grid(static_cast<unsigned>(this->out_features_), (vectors + kThreads - 1) / kThreads);
    dense_fp8_kernel<<<grid, kThreads, 0, stream>>>(this->codec_, static_cast<int>(this->in_features_), to);
    check(cudaGetLastError());
  }

  Tensor codes_;  // e4m3 [out, padded in]
  Tensor scale_;
  std::int64_t scale_stride_ = 0;
  bool is_per_tensor_ = false;
};

}  // namespace

std::unique_ptr<DevicePart> make_fp8_part(const weights::Fp8Weights& weights, ActivationKind kind,
                                          cudaStream_t stream) {
  nibble::check(weights.block_size == 0 || weights.block_size == weights::kFp8BlockSize, "fp8 blocks are of 128");
  if (weights.block_size > 0) return std::make_unique<Fp8Part<true>>(weights, kind, stream);
  return std::make_unique<Fp8Part<false>>(weights, kind, stream);
}

}  // namespace nibble::backend::cuda
