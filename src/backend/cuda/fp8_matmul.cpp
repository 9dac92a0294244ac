#include "backend/cuda/fp8_matmul.h"

#include <algorithm>

#include "backend/cuda/handles.h"
#include "backend/host_ops.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

// Up to so many tokens cuBLASLt's product with scales per output and token is slower, by up to a factor of two, than
// its bare product and a kernel that applies the scales; H100, cuBLAS 13.1.
constexpr std::int64_t kMaxSummedTokens = 64;
// Blocks: cuBLASLt wants tokens in fours.
constexpr std::int64_t kBlockTokens = 4;
constexpr std::int64_t kInputsPerScale = 128;
constexpr std::int64_t kAlignment = 16;  // bytes, of rows of y

std::int64_t round_up(std::int64_t value, std::int64_t to) {
  return (value + to - 1) / to * to;
}

std::int64_t num_scales(const Fp8Operand& w, std::int64_t num_tokens) {
  return w.scale_stride == 0
             ? num_tokens
             : round_up(w.row_bytes, kInputsPerScale) / kInputsPerScale * round_up(num_tokens, kBlockTokens);
}

Fp8Scaling scaling_of(const Fp8Operand& w, const ActivationFormat& format) {
  if (w.scale_stride > 0) return Fp8Scaling::Block;
  return w.is_per_tensor && format.kind == ActivationKind::Fp8Static ? Fp8Scaling::Tensor : Fp8Scaling::Vector;
}

/// Rows that a product runs on.
std::int64_t num_rows(Fp8Scaling scaling, std::int64_t num_tokens) {
  return scaling == Fp8Scaling::Block ? round_up(num_tokens, kBlockTokens) : num_tokens;
}

/// cuBLASLt writes y itself.
bool is_aligned(const Fp8Operand& w, const OutputColumns& y) {
  const auto element = static_cast<std::int64_t>(nibble::size_bytes(values_dtype(y.kind)));
  return reinterpret_cast<std::uintptr_t>(y.data) % kAlignment == 0 && y.stride * element % kAlignment == 0 &&
         w.out_features * element % kAlignment == 0;
}

}  // namespace

Fp8Matmul::Fp8Matmul(CublasLt& cublas) : cublas_(cublas) {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  is_supported_ = major == 9;
}

void Fp8Matmul::reserve(const Fp8Operand& w, std::int64_t max_tokens) {
  codes_.reserve(static_cast<std::size_t>(round_up(max_tokens, kBlockTokens) * w.row_bytes));
  scales_.reserve(static_cast<std::size_t>(num_scales(w, max_tokens)) * sizeof(float));
  sums_.reserve(static_cast<std::size_t>(kMaxSummedTokens * round_up(w.out_features, kFp8RowMultiple)) * sizeof(float));
}

void Fp8Matmul::multiply(const Fp8Operand& w, const Activation& x, const ActivationFormat& format,
                         const OutputColumns& y, std::int64_t y_capacity, cudaStream_t stream) {
  const Fp8Scaling scaling = scaling_of(w, format);
  const bool prefers_sums = scaling == Fp8Scaling::Vector && x.num_tokens <= kMaxSummedTokens;
  if (!prefers_sums && is_aligned(w, y) && num_rows(scaling, x.num_tokens) <= y_capacity) {
    return multiply_whole(w, x, format, y, stream);
  }
  for (std::int64_t first = 0; first < x.num_tokens; first += kMaxSummedTokens) {
    multiply_by_sums(w, x, first, format, y, stream);
  }
}

Fp8Rows Fp8Matmul::quantize(const Fp8Operand& w, const Activation& x, std::int64_t first, std::int64_t num_rows,
                            std::int64_t num_written, const ActivationFormat& format, cudaStream_t stream) {
  const Fp8Rows rows{.codes = codes_.data(),
                     .row_bytes = w.row_bytes,
                     .scales = static_cast<float*>(scales_.data()),
                     .scale_stride = num_written};
  quantize_fp8_rows(x, first, num_rows, num_written, format, rows, stream);
  return rows;
}

void Fp8Matmul::multiply_whole(const Fp8Operand& w, const Activation& x, const ActivationFormat& format,
                               const OutputColumns& y, cudaStream_t stream) {
  const Fp8Scaling scaling = scaling_of(w, format);
  const std::int64_t m = num_rows(scaling, x.num_tokens);
  const Fp8Rows rows = quantize(w, x, 0, x.num_tokens, m, format, stream);
  cublas_.multiply({.m = m,
                    .n = w.out_features,
                    .k = w.row_bytes,
                    .y_stride = y.stride,
                    .input = DType::F8E4M3,
                    .output = values_dtype(y.kind),
                    .scaling = scaling},
                   rows.codes, w.codes, y.data, stream, {.w = w.scale, .x = rows.scales});
}

void Fp8Matmul::multiply_by_sums(const Fp8Operand& w, const Activation& x, std::int64_t first,
                                 const ActivationFormat& format, const OutputColumns& y, cudaStream_t stream) {
  const bool has_blocks = scaling_of(w, format) == Fp8Scaling::Block;
  const Fp8Scaling scaling = has_blocks ? Fp8Scaling::Block : Fp8Scaling::None;
  const std::int64_t count = std::min(kMaxSummedTokens, x.num_tokens - first);
  const std::int64_t m = num_rows(scaling, count);
  const Fp8Rows rows = quantize(w, x, first, count, m, format, stream);
  auto* sums = static_cast<float*>(sums_.data());
  const std::int64_t columns = round_up(w.out_features, kFp8RowMultiple);
  cublas_.multiply({.m = m,
                    .n = columns,
                    .k = w.row_bytes,
                    .y_stride = columns,
                    .input = DType::F8E4M3,
                    .output = DType::F32,
                    .scaling = scaling},
                   rows.codes, w.codes, sums, stream, {.w = w.scale, .x = rows.scales});
  const std::size_t element = nibble::size_bytes(values_dtype(y.kind));
  OutputColumns to = y;
  to.data = static_cast<std::byte*>(y.data) + static_cast<std::size_t>(first * y.stride) * element;
  scale_sums(sums, columns, has_blocks ? nullptr : rows.scales, has_blocks ? nullptr : w.scale, count, w.out_features,
             to, stream);
}

}  // namespace nibble::backend::cuda
