#include <cmath>
#include <string>
#include <vector>

#include "weights/kinds.h"

namespace nibble::weights {
namespace {

std::int64_t num_blocks(std::int64_t size, std::int64_t block_size) {
  return (size + block_size - 1) / block_size;
}

bool is_per_channel(const Fp8Weights& w) {
  return w.block_size == 0 && w.scale.num_elements() == out_features_of(w);
}

float scale_at(const Fp8Weights& w, std::int64_t o, std::int64_t i) {
  const auto scales = w.scale.span<float>();
  if (w.block_size > 0) {
    const std::int64_t per_row = num_blocks(in_features_of(w), w.block_size);
    return scales[static_cast<std::size_t>(o / w.block_size * per_row + i / w.block_size)];
  }
  return scales[is_per_channel(w) ? static_cast<std::size_t>(o) : 0];
}

}  // namespace

std::int64_t out_features_of(const Fp8Weights& w) {
  return w.weight.shape()[0];
}
std::int64_t in_features_of(const Fp8Weights& w) {
  return w.weight.shape()[1];
}

std::int64_t size_bytes_of(const Fp8Weights& w) {
  return static_cast<std::int64_t>(w.weight.size_bytes() + w.scale.size_bytes());
}

std::string describe_kind(const Fp8Weights& w) {
  if (w.block_size > 0) return "fp8 block " + std::to_string(w.block_size);
  return is_per_channel(w) ? "fp8 per channel" : "fp8 per tensor";
}

void validate_kind(const Fp8Weights& w) {
  if (w.weight.shape().rank() != 2 || w.weight.dtype() != DType::F8E4M3) {
    throw Error(ErrorCode::Corrupt, "weight: expected an F8_E4M3 matrix");
  }
  if (w.block_size > 0) {
    expect_shape(w.scale, {num_blocks(out_features_of(w), w.block_size), num_blocks(in_features_of(w), w.block_size)},
                 "weight_scale");
  } else if (w.scale.num_elements() != 1 && w.scale.num_elements() != out_features_of(w)) {
    throw Error(ErrorCode::Corrupt, "weight_scale: expected one value or one per output channel, found " +
                                        std::to_string(w.scale.num_elements()));
  }
  expect_finite(w.scale, "weight_scale");
  if (!std::isfinite(w.input_scale) || w.input_scale < 0) {
    throw Error(ErrorCode::Corrupt, "input_scale must be finite and positive");
  }
}

void dequantize_rows_of(const Fp8Weights& w, std::int64_t first_row, Matrix<float> to) {
  for (std::int64_t r = 0; r < to.rows; ++r) {
    const std::int64_t o = first_row + r;
    to_float32(w.weight.view().rows(o, 1).data(), DType::F8E4M3, to.cols, to.row(r));
    for (std::int64_t i = 0; i < to.cols; ++i) to.row(r)[i] *= scale_at(w, o, i);
  }
}

Fp8Weights slice_outputs_of(const Fp8Weights& w, std::int64_t first, std::int64_t count) {
  Fp8Weights slice;
  slice.weight = copy_rows(w.weight, first, count);
  slice.block_size = w.block_size;
  slice.input_scale = w.input_scale;
  if (w.block_size > 0) {
    check(first % w.block_size == 0, "FP8 block weights are sliced at block boundaries");
    slice.scale = copy_rows(w.scale, first / w.block_size, num_blocks(count, w.block_size));
  } else {
    slice.scale = is_per_channel(w) ? copy_rows(w.scale, first, count) : Tensor::copy_of(w.scale);
  }
  return slice;
}

Fp8Weights slice_inputs_of(const Fp8Weights& w, std::int64_t first, std::int64_t count) {
  Fp8Weights slice;
  slice.weight = copy_columns(w.weight, first, count);
  slice.block_size = w.block_size;
  slice.input_scale = w.input_scale;
  if (w.block_size > 0) {
    check(first % w.block_size == 0, "FP8 block weights are sliced at block boundaries");
    slice.scale = copy_columns(w.scale, first / w.block_size, num_blocks(count, w.block_size));
  } else {
    slice.scale = Tensor::copy_of(w.scale);
  }
  return slice;
}

}  // namespace nibble::weights
