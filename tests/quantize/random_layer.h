#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/linear_algebra.h"
#include "weights/kinds.h"

namespace nibble::quantize {

inline Tensor random_matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  Tensor matrix = Tensor::empty(DType::F32, {rows, cols});
  for (float& value : matrix.span<float>()) value = normal(random);
  return matrix;
}

/// Inputs [tokens, features] whose channels are mixtures of a few sources and differ widely in size, as those of a
/// language model do.
inline Tensor correlated_inputs(std::int64_t tokens, std::int64_t features, std::uint32_t seed) {
  const std::int64_t num_sources = features / 3;
  const Tensor sources = random_matrix(tokens, num_sources, seed);
  const Tensor mixing = random_matrix(features, num_sources, seed + 1);
  Tensor inputs = random_matrix(tokens, features, seed + 2, 0.3f);
  std::mt19937 random(seed + 3);
  std::uniform_real_distribution<float> exponent(-1.5f, 1.5f);
  for (std::int64_t k = 0; k < features; ++k) {
    const float size = std::exp(exponent(random));
    for (std::int64_t t = 0; t < tokens; ++t) {
      float& x = inputs.matrix<float>().row(t)[k];
      for (std::int64_t s = 0; s < num_sources; ++s) {
        x += sources.matrix<float>().row(t)[s] * mixing.matrix<float>().row(k)[s] /
             std::sqrt(static_cast<float>(num_sources));
      }
      x *= size;
    }
  }
  return inputs;
}

/// Σ x x^T, symmetric.
inline Tensor gram_of(const Tensor& inputs, ThreadPool& pool) {
  const std::int64_t features = inputs.shape()[1];
  Tensor gram = Tensor::zeros(DType::F32, {features, features});
  accumulate_gram(inputs.matrix<float>(), gram.matrix<float>(), pool);
  mirror_upper(gram.matrix<float>());
  return gram;
}

inline Tensor identity(std::int64_t size) {
  Tensor matrix = Tensor::zeros(DType::F32, {size, size});
  for (std::int64_t i = 0; i < size; ++i) matrix.matrix<float>().row(i)[i] = 1;
  return matrix;
}

/// Checked and dequantized: f32 [out, in].
template <class Quantized>
Tensor values_of(const Quantized& quantized) {
  weights::validate_kind(quantized);
  Tensor values = Tensor::empty(DType::F32, {quantized.out_features, quantized.in_features});
  weights::dequantize_rows_of(quantized, 0, values.matrix<float>());
  return values;
}

inline bool same_bytes(const Tensor& a, const Tensor& b) {
  if (a.is_empty() || b.is_empty()) return a.is_empty() && b.is_empty();
  const auto* first = static_cast<const std::byte*>(a.view().data());
  const auto* second = static_cast<const std::byte*>(b.view().data());
  return a.size_bytes() == b.size_bytes() && std::equal(first, first + a.size_bytes(), second);
}

}  // namespace nibble::quantize
