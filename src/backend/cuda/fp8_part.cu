#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "backend/cuda/dense_kernels.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/joined_rows.h"
#include "backend/cuda/streamed_part.cuh"
#include "weights/fp8.h"

namespace nibble::backend::cuda {
namespace {

// Columns of block scales: cuBLASLt wants whole fours.
constexpr std::int64_t kScaleColumns = 4;
// Rows of codes begin where the streaming kernels' copies may.
constexpr std::int64_t kRowBytes = 32;

std::int64_t round_up(std::int64_t value, std::int64_t to) {
  return (value + to - 1) / to * to;
}

using Fp8Parts = std::span<const weights::Fp8Weights* const>;

std::int64_t num_rows(Fp8Parts parts) {
  std::int64_t rows = 0;
  for (const auto* part : parts) rows += part->weight.shape()[0];
  return rows;
}

Tensor join_codes(Fp8Parts parts, cudaStream_t stream) {
  std::vector<TensorView> codes;
  for (const auto* part : parts) codes.emplace_back(part->weight);
  const std::int64_t row_bytes = round_up(codes.front().shape()[1], kRowBytes);
  return join_padded_rows(codes, {.row_bytes = row_bytes, .row_multiple = kFp8RowMultiple}, stream);
}

/// A scale an output row, zeros up to `rows`.
Tensor join_row_scales(Fp8Parts parts, std::int64_t rows) {
  Tensor joined = Tensor::zeros(DType::F32, {rows});
  auto next = joined.span<float>().begin();
  for (const auto* part : parts) {
    const auto scales = part->scale.span<float>();
    if (scales.size() == 1) {
      next = std::fill_n(next, part->weight.shape()[0], scales[0]);
    } else {
      next = std::ranges::copy(scales, next).out;
    }
  }
  return joined;
}

/// A row of `stride` scales a row of blocks.
Tensor join_block_scales(Fp8Parts parts, std::int64_t stride) {
  std::int64_t rows = 0;
  for (const auto* part : parts) rows += part->scale.shape()[0];
  Tensor joined = Tensor::zeros(DType::F32, {rows, stride});
  std::int64_t row = 0;
  for (const auto* part : parts) {
    for (std::int64_t r = 0; r < part->scale.shape()[0]; ++r) {
      std::ranges::copy(part->scale.matrix<float>().row_span(r), joined.matrix<float>().row(row++));
    }
  }
  return joined;
}

/// All parts have one scale, and the same.
bool share_a_scale(Fp8Parts parts) {
  const float first = parts.front()->scale.span<float>()[0];
  return std::ranges::all_of(parts, [&](const auto* part) {
    return part->scale.num_elements() == 1 && part->scale.template span<float>()[0] == first;
  });
}

/// to[row - first_row, col] = codes[row, col] * scale, a thread eight columns.
template <bool kBlockScales, class To>
__global__ void dense_fp8_kernel(const Fp8Codec<kBlockScales> codec, int first_row, int in_features, To* to) {
  const int col = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int row = first_row + static_cast<int>(blockIdx.x);
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
  To* row_to = to + static_cast<std::int64_t>(blockIdx.x) * in_features;
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
  Fp8Part(Fp8Parts parts, ActivationKind kind, cudaStream_t stream)
      : codes_(join_codes(parts, stream)), is_per_tensor_(share_a_scale(parts)) {
    const weights::Fp8Weights& first = *parts.front();
    if (kBlockScales) scale_stride_ = round_up(first.scale.shape()[1], kScaleColumns);
    scale_ = to_device(
        kBlockScales ? join_block_scales(parts, scale_stride_) : join_row_scales(parts, codes_.shape()[0]), stream);
    this->is_streamed_ = kind == ActivationKind::F16;
    this->out_features_ = num_rows(parts);
    this->in_features_ = first.weight.shape()[1];
    this->num_blocks_ = plan_columns(this->in_features_).num_blocks;
    this->size_bytes_ = static_cast<std::int64_t>(codes_.size_bytes() + scale_.size_bytes());
    this->codec_ = {.codes = data_of<std::byte>(codes_),
                    .row_bytes = codes_.shape()[1],
                    .out_features = static_cast<std::int32_t>(this->out_features_),
                    .scale = data_of<float>(scale_),
                    .scale_cols = static_cast<std::int32_t>(scale_stride_)};
  }

  const void* dense(ActivationKind kind, RowRange rows, void* scratch, cudaStream_t stream) const override {
    if (kind == ActivationKind::F32) {
      write_dense(rows, static_cast<float*>(scratch), stream);
    } else {
      write_dense(rows, static_cast<__half*>(scratch), stream);
    }
    return scratch;
  }

  std::optional<Fp8Operand> fp8_operand() const override {
    return Fp8Operand{.out_features = this->out_features_,
                      .codes = codes_.view().data(),
                      .row_bytes = codes_.shape()[1],
                      .scale = data_of<float>(scale_),
                      .scale_stride = scale_stride_,
                      .is_per_tensor = is_per_tensor_};
  }

 private:
  template <class To>
  void write_dense(const RowRange& rows, To* to, cudaStream_t stream) const {
    constexpr unsigned kThreads = 128;
    const auto vectors = static_cast<unsigned>((this->in_features_ + 7) / 8);
    const dim3 grid(static_cast<unsigned>(rows.count), (vectors + kThreads - 1) / kThreads);
    dense_fp8_kernel<<<grid, kThreads, 0, stream>>>(this->codec_, static_cast<int>(rows.first),
                                                    static_cast<int>(this->in_features_), to);
    check(cudaGetLastError());
  }

  Tensor codes_;  // e4m3 [padded out, padded in]
  Tensor scale_;
  std::int64_t scale_stride_ = 0;
  bool is_per_tensor_ = false;
};

}  // namespace

std::unique_ptr<DevicePart> make_fp8_part(std::span<const weights::Fp8Weights* const> parts, ActivationKind kind,
                                          cudaStream_t stream) {
  const std::int64_t block_size = parts.front()->block_size;
  nibble::check(block_size == 0 || block_size == weights::kFp8BlockSize, "fp8 blocks are of 128");
  if (block_size > 0) return std::make_unique<Fp8Part<true>>(parts, kind, stream);
  return std::make_unique<Fp8Part<false>>(parts, kind, stream);
}

bool can_join(const weights::Fp8Weights& a, const weights::Fp8Weights& b) {
  const auto ends_with_a_block = [](const weights::Fp8Weights& w) {
    return w.block_size == 0 || w.weight.shape()[0] % w.block_size == 0;
  };
  return a.block_size == b.block_size && (a.input_scale > 0) == (b.input_scale > 0) && ends_with_a_block(a) &&
         ends_with_a_block(b);
}

}  // namespace nibble::backend::cuda
