#include <cmath>
#include <cstring>
#include <string>

#include "weights/kinds.h"

namespace nibble::weights {

std::int64_t out_features_of(const DenseWeights& w) {
  return w.weight.shape()[0];
}
std::int64_t in_features_of(const DenseWeights& w) {
  return w.weight.shape()[1];
}
std::int64_t size_bytes_of(const DenseWeights& w) {
  return static_cast<std::int64_t>(w.weight.size_bytes());
}
std::string describe_kind(const DenseWeights& w) {
  return "dense " + std::string(name(w.weight.dtype()));
}

void validate_kind(const DenseWeights& w) {
  if (w.weight.shape().rank() != 2) {
    throw Error(ErrorCode::Corrupt, "weight: expected a matrix, found shape " + w.weight.shape().to_string());
  }
  if (!is_float(w.weight.dtype())) {
    throw Error(ErrorCode::Corrupt, "weight: expected a float dtype, found " + std::string(name(w.weight.dtype())));
  }
}

void dequantize_rows_of(const DenseWeights& w, std::int64_t first_row, Matrix<float> to) {
  const TensorView rows = w.weight.view().rows(first_row, to.rows);
  for (std::int64_t r = 0; r < to.rows; ++r) to_float32(rows.rows(r, 1).data(), rows.dtype(), to.cols, to.row(r));
}

DenseWeights slice_outputs_of(const DenseWeights& w, std::int64_t first, std::int64_t count) {
  return {copy_rows(w.weight, first, count)};
}

DenseWeights slice_inputs_of(const DenseWeights& w, std::int64_t first, std::int64_t count) {
  return {copy_columns(w.weight, first, count)};
}

Tensor copy_rows(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  if (tensor.is_empty()) return {};
  return Tensor::copy_of(tensor.view().rows(first, count));
}

Tensor copy_columns(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  Tensor copy = Tensor::empty(tensor.dtype(), {tensor.shape()[0], count});
  const std::size_t element = size_bytes(tensor.dtype());
  for (std::int64_t r = 0; r < tensor.shape()[0]; ++r) {
    const auto* source = static_cast<const std::byte*>(tensor.view().rows(r, 1).data());
    std::memcpy(copy.mutable_view().rows(r, 1).data(), source + static_cast<std::size_t>(first) * element,
                static_cast<std::size_t>(count) * element);
  }
  return copy;
}

void expect_shape(const Tensor& tensor, const Shape& shape, const char* what) {
  if (!tensor.is_empty() && tensor.shape() == shape) return;
  throw Error(ErrorCode::Corrupt, std::string(what) + ": expected shape " + shape.to_string() + ", found " +
                                      (tensor.is_empty() ? "nothing" : tensor.shape().to_string()));
}

void expect_finite(const Tensor& tensor, const char* what) {
  const Tensor values = to_dtype(tensor, DType::F32);
  for (const float value : values.span<float>()) {
    if (!std::isfinite(value)) throw Error(ErrorCode::Corrupt, std::string(what) + " holds NaN or infinity");
  }
}

}  // namespace nibble::weights
