#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "backend/backend.h"

namespace nibble::backend::cuda {

/// Columns [first_col, first_col + out_features of a part) of a linear's output.
struct OutputColumns {
  void* data = nullptr;  // [num_tokens, stride], at the part's first column
  std::int64_t stride = 0;
  ActivationKind kind = ActivationKind::F16;
};

/// Rows of FP8 weights are padded to whole fours: 16 bytes of sums.
inline constexpr std::int64_t kFp8RowMultiple = 4;

/// FP8 weights in the layout of cuBLASLt, for products with 8-bit inputs.
///
/// codes  e4m3 [out_features in whole fours, row_bytes]: plain rows, zeros beyond in_features and out_features;
///        row_bytes is a multiple of 16
/// scale  f32 [out_features in whole fours]; with blocks [ceil(out_features / 128), scale_stride], scale_stride a
///        multiple of 4
struct Fp8Operand {
  std::int64_t out_features = 0;
  const void* codes = nullptr;
  std::int64_t row_bytes = 0;
  const float* scale = nullptr;
  std::int64_t scale_stride = 0;  // 0: no blocks
  bool is_per_tensor = false;     // all of `scale` are one number
};

/// Rows [first, first + count) of a matrix.
struct RowRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// One part of a fused linear on the device, in the layout of its kernels. Immutable.
class DevicePart {
 public:
  virtual ~DevicePart() = default;
  std::int64_t out_features() const { return out_features_; }
  std::int64_t size_bytes() const { return size_bytes_; }

  /// Whether `multiply` runs up to this many tokens by itself, reading the weights once.
  virtual std::int64_t max_streamed_tokens() const = 0;
  /// y = W x for x.num_tokens of at most max_streamed_tokens(), with scratch_bytes() of scratch.
  virtual void multiply(const Activation& x, const OutputColumns& y, void* scratch, cudaStream_t stream) const = 0;

  /// Rows [count, in_features] of the weights in the dtype of `kind` (F16 or F32): where the part holds them, else
  /// computed into `scratch`. rows: from a multiple of dense_rows(kind), at most as many.
  virtual const void* dense(ActivationKind kind, RowRange rows, void* scratch, cudaStream_t stream) const = 0;
  virtual std::int64_t dense_rows(ActivationKind kind) const = 0;
  /// Bytes of scratch that `dense` and `multiply` need, one after the other.
  virtual std::size_t scratch_bytes(ActivationKind kind) const = 0;

  /// The weights for products in FP8, where they are FP8.
  virtual std::optional<Fp8Operand> fp8_operand() const { return std::nullopt; }

 protected:
  std::int64_t out_features_ = 0;
  std::int64_t size_bytes_ = 0;
};

/// Float weights on the device (Uploader), in the dtype of `kind`: `parts` that can_join become one. A table that a
/// single part borrows is borrowed. Errors: OutOfMemory.
std::unique_ptr<DevicePart> make_dense_part(std::span<const weights::DenseWeights* const> parts, ActivationKind kind,
                                            cudaStream_t stream);
bool can_join(const weights::DenseWeights& a, const weights::DenseWeights& b);
/// Integers of 2, 3, 4 and 8 bits, with or without g_idx. Errors: OutOfMemory.
/// Here and below: for products with inputs of `kind`.
std::unique_ptr<DevicePart> make_int_part(std::span<const weights::GroupedIntWeights* const> parts, ActivationKind kind,
                                          cudaStream_t stream);
bool can_join(const weights::GroupedIntWeights& a, const weights::GroupedIntWeights& b);
/// Codebooks of 3 and 4 bits with or without outliers.
std::unique_ptr<DevicePart> make_codebook_part(std::span<const weights::CodebookWeights* const> parts,
                                               ActivationKind kind, cudaStream_t stream);
bool can_join(const weights::CodebookWeights& a, const weights::CodebookWeights& b);
std::unique_ptr<DevicePart> make_fp8_part(std::span<const weights::Fp8Weights* const> parts, ActivationKind kind,
                                          cudaStream_t stream);
/// Their inputs are rounded alike, with the largest static scale.
bool can_join(const weights::Fp8Weights& a, const weights::Fp8Weights& b);

}  // namespace nibble::backend::cuda
