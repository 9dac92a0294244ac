#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "backend_cases.h"
#include "weights/fp8.h"
#include "weights/linear_weights.h"
#include "weights/random_weights.h"

namespace nibble::backend::test {

/// A random linear of one kind.
struct WeightCase {
  std::string label;
  std::int64_t out_features;
  std::int64_t in_features;
  DType dtype = DType::F16;  // of dense weights or of scales
  std::int32_t bits = 0;     // 0: dense
  std::int64_t group_size = 0;
  bool is_symmetric = false;
  bool has_g_idx = false;
  std::int64_t first_group_offset = 0;
  bool has_bias = false;
  bool is_codebook = false;
  double sparsity = 0;  // codebook: share of the weights with a sparse value
  std::optional<weights::Fp8Granularity> fp8 = {};
};

inline std::ostream& operator<<(std::ostream& out, const WeightCase& c) {
  return out << c.label;
}

inline weights::GroupedIntWeights random_grouped_int(const WeightCase& c, std::uint32_t seed) {
  std::mt19937 generator(seed);
  weights::GroupedIntWeights w;
  w.out_features = c.out_features;
  w.in_features = c.in_features;
  w.bits = c.bits;
  w.group_size = c.group_size;
  w.first_group_offset = c.first_group_offset;
  const std::int64_t num_groups = (c.first_group_offset + c.in_features + c.group_size - 1) / c.group_size;
  w.codes = Tensor::zeros(DType::U8, {c.out_features, weights::packed_row_bytes(c.in_features, c.bits)});
  std::vector<std::uint8_t> row(static_cast<std::size_t>(c.in_features));
  for (std::int64_t o = 0; o < c.out_features; ++o) {
    for (auto& code : row) code = static_cast<std::uint8_t>(generator() & ((1u << c.bits) - 1));
    weights::pack_codes(row, c.bits, w.codes.matrix<std::uint8_t>().row_span(o));
  }
  w.scales = random_tensor(c.dtype, {c.out_features, num_groups}, seed + 1);
  w.zeros = Tensor::empty(DType::I16, {c.out_features, num_groups});
  for (std::int16_t& zero : w.zeros.span<std::int16_t>()) {
    zero = static_cast<std::int16_t>(c.is_symmetric ? 1u << (c.bits - 1) : generator() % ((1u << c.bits) + 1));
  }
  if (c.has_g_idx) {
    w.g_idx = Tensor::empty(DType::I32, {c.in_features});
    const auto g_idx = w.g_idx.span<std::int32_t>();
    for (std::size_t i = 0; i < g_idx.size(); ++i)
      g_idx[i] = static_cast<std::int32_t>(i) / static_cast<std::int32_t>(c.group_size);
    std::ranges::shuffle(g_idx, generator);
  }
  return w;
}

inline weights::LinearPart random_part(const WeightCase& c, std::uint32_t seed) {
  weights::LinearPart part;
  if (c.is_codebook) {
    std::mt19937 random(seed);
    part.weights = weights::make_random_codebook({.out_features = c.out_features,
                                                  .in_features = c.in_features,
                                                  .bits = c.bits,
                                                  .sparsity = c.sparsity,
                                                  .table_dtype = c.dtype},
                                                 random);
  } else if (c.fp8) {
    const Tensor weight = random_tensor(DType::F32, {c.out_features, c.in_features}, seed);
    const TensorView view = weight;
    ThreadPool pool(1);
    part.weights = std::move(weights::quantize_fp8({&view, 1}, *c.fp8, pool).front());
  } else if (c.bits == 0) {
    part.weights = weights::DenseWeights{random_tensor(c.dtype, {c.out_features, c.in_features}, seed)};
  } else {
    part.weights = random_grouped_int(c, seed);
  }
  weights::validate(part.weights);
  if (c.has_bias) part.bias = random_tensor(DType::F32, {c.out_features}, seed + 2);
  return part;
}

inline weights::LinearPart copy_of(const weights::LinearPart& part) {
  const std::int64_t rows = weights::out_features(part.weights);
  return {weights::slice_outputs(part.weights, 0, rows), part.bias.is_empty() ? Tensor{} : Tensor::copy_of(part.bias)};
}

/// W and bias of a part, and y = W x + b in f64 with the magnitude sum |w x| + |b| that rounding errors scale with.
struct Expected {
  Matrix64 y;
  Matrix64 magnitude;
};

inline Expected expected_output(const std::vector<weights::LinearPart>& parts, const Matrix64& x) {
  const auto num_tokens = static_cast<std::int64_t>(x.values.size()) / x.cols;
  std::int64_t out_features = 0;
  for (const auto& part : parts) out_features += weights::out_features(part.weights);
  const auto size = static_cast<std::size_t>(num_tokens * out_features);
  Expected expected{{out_features, std::vector<double>(size)}, {out_features, std::vector<double>(size)}};
  std::int64_t first_row = 0;
  for (const auto& part : parts) {
    const Tensor dense = weights::dequantize(part.weights);
    const auto w = dense.matrix<float>();
    for (std::int64_t o = 0; o < w.rows; ++o) {
      const double bias = part.bias.is_empty() ? 0 : part.bias.span<float>()[static_cast<std::size_t>(o)];
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        double sum = bias;
        double magnitude = std::abs(bias);
        for (std::int64_t k = 0; k < w.cols; ++k) {
          sum += w.row(o)[k] * x.at(t, k);
          magnitude += std::abs(w.row(o)[k] * x.at(t, k));
        }
        expected.y.at(t, first_row + o) = sum;
        expected.magnitude.at(t, first_row + o) = magnitude;
      }
    }
    first_row += w.rows;
  }
  return expected;
}

/// Random tokens in the format that `linear` wants, through a norm with weights 1.
inline Activation make_input(Backend& backend, const Linear& linear, std::int64_t num_tokens, std::uint32_t seed) {
  const std::int64_t width = linear.in_features();
  Activation hidden = make_hidden(backend, num_tokens, width, random_values(num_tokens * width, seed));
  Activation input = backend.make_activation(num_tokens, width, linear.input_format());
  const std::vector<float> ones(static_cast<std::size_t>(width), 1.0f);
  backend.norm(hidden, nullptr, backend.make_vector(TensorView(ones.data(), DType::F32, {width})), 1e-5f, input);
  return input;
}

inline std::vector<float> run(Backend& backend, const Linear& linear, const Activation& input) {
  Activation output = backend.make_activation(input.num_tokens, linear.out_features(), backend.hidden_format());
  linear.forward(input, output);
  return read_f32(backend, output);
}

/// Row `t` alone, as a batch of one.
inline Activation take_row(Backend& backend, const Activation& from, std::int64_t t) {
  Activation row = backend.make_activation(1, from.width(), from.format);
  row.num_tokens = 1;
  row.values = Tensor::copy_of(from.values.view().rows(t, 1));
  if (!from.scales.is_empty()) row.scales = Tensor::copy_of(from.scales.view().rows(t, 1));
  if (!from.sums.is_empty()) row.sums = Tensor::copy_of(from.sums.view().rows(t, 1));
  return row;
}

}  // namespace nibble::backend::test
