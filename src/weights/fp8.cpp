#include "weights/fp8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/fp8_e4m3.h"
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

/// Errors: Corrupt for a scale that is not a positive number.
void expect_positive(const Tensor& scales) {
  for (const float scale : scales.span<float>()) {
    if (std::isfinite(scale) && scale > 0) continue;
    throw Error(ErrorCode::Corrupt, "weight_scale: found " + std::to_string(scale) +
                                        "; scales must be positive numbers, so the checkpoint is broken");
  }
}

/// Errors: Corrupt where a code is one of E4M3's two NaNs.
void expect_numbers(const Tensor& weight) {
  const auto codes = weight.span<Fp8E4M3>();
  bool has_nan = false;
  for (const Fp8E4M3 code : codes) has_nan |= (code.bits & 0x7f) == 0x7f;
  if (has_nan) throw Error(ErrorCode::Corrupt, "weight holds NaN");
}

/// Rows that one task quantizes.
constexpr std::int64_t kTaskRows = kFp8BlockSize;

/// Bits of the largest magnitude; those of infinity or more where a value is not finite. As integers, magnitudes sort
/// like floats.
std::uint32_t largest_magnitude(std::span<const float> values) {
  std::uint32_t largest = 0;
  for (const float value : values) largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7fffffffu);
  return largest;
}

float scale_of(std::uint32_t largest) {
  return fp8_scale(std::bit_cast<float>(largest));
}

void round_run(std::span<const float> values, float scale, std::uint8_t* codes) {
  for (std::size_t i = 0; i < values.size(); ++i) codes[i] = fp8_e4m3_bits(values[i] / scale);
}

/// One linear at work. Every task has a span of rows, whole blocks of them, and writes what belongs to those alone.
class Fp8Rounding {
 public:
  Fp8Rounding(TensorView source, Fp8Granularity granularity)
      : source_(source), granularity_(granularity), largest_of_task_(static_cast<std::size_t>(num_tasks())) {
    weights.weight = Tensor::empty(DType::F8E4M3, source.shape());
    if (granularity == Fp8Granularity::PerBlock) weights.block_size = kFp8BlockSize;
    weights.scale = Tensor::empty(DType::F32, scale_shape());
  }

  std::int64_t num_tasks() const { return num_blocks(source_.shape()[0], kTaskRows); }

  /// First pass: the task's largest magnitude.
  void measure(std::int64_t task) {
    std::uint32_t largest = 0;
    std::vector<float> row(static_cast<std::size_t>(source_.shape()[1]));
    for_each_row(task, [&](std::int64_t o) {
      load(o, row);
      largest = std::max(largest, largest_magnitude(row));
    });
    largest_of_task_[static_cast<std::size_t>(task)] = largest;
  }
  std::uint32_t largest() const { return *std::ranges::max_element(largest_of_task_); }

  /// Second pass.
  void round(std::int64_t task, float tensor_scale) {
    if (granularity_ == Fp8Granularity::PerBlock) return round_blocks(task);
    std::vector<float> row(static_cast<std::size_t>(source_.shape()[1]));
    for_each_row(task, [&](std::int64_t o) {
      load(o, row);
      float scale = tensor_scale;
      if (granularity_ == Fp8Granularity::PerChannel) {
        scale = scale_of(largest_magnitude(row));
        weights.scale.span<float>()[static_cast<std::size_t>(o)] = scale;
      }
      round_run(row, scale, codes(o));
    });
  }

  Fp8Weights weights;

 private:
  Shape scale_shape() const {
    const std::int64_t out = source_.shape()[0];
    switch (granularity_) {
      case Fp8Granularity::PerTensor: return {1};
      case Fp8Granularity::PerChannel: return {out};
      case Fp8Granularity::PerBlock: break;
    }
    return {num_blocks(out, kFp8BlockSize), num_blocks(source_.shape()[1], kFp8BlockSize)};
  }

  template <class Body>
  void for_each_row(std::int64_t task, const Body& body) {
    const std::int64_t end = std::min(source_.shape()[0], (task + 1) * kTaskRows);
    for (std::int64_t o = task * kTaskRows; o < end; ++o) body(o);
  }
  void load(std::int64_t o, std::span<float> row) const {
    to_float32(source_.rows(o, 1).data(), source_.dtype(), source_.shape()[1], row.data());
  }
  std::uint8_t* codes(std::int64_t o) {
    return static_cast<std::uint8_t*>(weights.weight.mutable_view().rows(o, 1).data());
  }

  void round_blocks(std::int64_t task) {
    const auto cols = static_cast<std::size_t>(source_.shape()[1]);
    const auto block = [&](std::span<float> row, std::size_t b) {
      const std::size_t first = b * static_cast<std::size_t>(kFp8BlockSize);
      return row.subspan(first, std::min(static_cast<std::size_t>(kFp8BlockSize), cols - first));
    };
    const std::span<float> scales = weights.scale.matrix<float>().row_span(task);
    std::vector<std::uint32_t> largest(scales.size());
    std::vector<float> row(cols);
    for_each_row(task, [&](std::int64_t o) {
      load(o, row);
      for (std::size_t b = 0; b < largest.size(); ++b) {
        largest[b] = std::max(largest[b], largest_magnitude(block(row, b)));
      }
    });
    std::ranges::transform(largest, scales.begin(), scale_of);
    for_each_row(task, [&](std::int64_t o) {
      load(o, row);
      for (std::size_t b = 0; b < scales.size(); ++b) {
        round_run(block(row, b), scales[b], codes(o) + b * static_cast<std::size_t>(kFp8BlockSize));
      }
    });
  }

  TensorView source_;
  Fp8Granularity granularity_;
  std::vector<std::uint32_t> largest_of_task_;
};

}  // namespace

float fp8_scale(float largest) {
  const float scale = largest / kFp8Largest;
  return scale > 0 ? scale : 1.0f;
}

std::vector<Fp8Weights> quantize_fp8(std::span<const TensorView> parts, Fp8Granularity granularity, ThreadPool& pool) {
  std::vector<Fp8Weights> quantized;
  std::vector<Fp8Rounding> roundings;
  for (const TensorView& part : parts) {
    check(part.shape().rank() == 2 && is_float(part.dtype()), "quantize_fp8 of a float matrix");
    roundings.emplace_back(part, granularity);
  }
  std::uint32_t largest = 0;
  for (Fp8Rounding& rounding : roundings) {
    pool.run(rounding.num_tasks(), [&](std::int64_t task, int) { rounding.measure(task); });
    largest = std::max(largest, rounding.largest());
  }
  if (largest >= std::bit_cast<std::uint32_t>(INFINITY)) {
    throw Error(ErrorCode::Corrupt, "weight holds NaN or infinity");
  }
  const float tensor_scale = scale_of(largest);
  for (Fp8Rounding& rounding : roundings) {
    pool.run(rounding.num_tasks(), [&](std::int64_t task, int) { rounding.round(task, tensor_scale); });
    if (granularity == Fp8Granularity::PerTensor) rounding.weights.scale.span<float>()[0] = tensor_scale;
    quantized.push_back(std::move(rounding.weights));
  }
  return quantized;
}

void quantize_parts_to_fp8(std::span<LinearPart> parts, Fp8Granularity granularity, ThreadPool& pool) {
  std::vector<TensorView> views;
  for (const LinearPart& part : parts) {
    if (const auto* dense = std::get_if<DenseWeights>(&part.weights)) views.emplace_back(dense->weight);
  }
  std::vector<Fp8Weights> quantized = quantize_fp8(views, granularity, pool);
  auto next = quantized.begin();
  for (LinearPart& part : parts) {
    if (std::holds_alternative<DenseWeights>(part.weights)) part.weights = std::move(*next++);
  }
}

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
  expect_positive(w.scale);
  expect_numbers(w.weight);
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
