#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"

/// What the tests of all backends share: which backends there are, random inputs, and activations read back as f64.
namespace nibble::backend::test {

struct BackendCase {
  std::string name;
  Precision precision;
};

inline std::ostream& operator<<(std::ostream& out, const BackendCase& c) {
  return out << c.name << (c.precision == Precision::Fast ? "Fast" : "Exact");
}

inline const std::vector<BackendCase> kBackendCases{
    {"reference", Precision::Exact}, {"cpu", Precision::Fast}, {"cpu", Precision::Exact}};

inline std::unique_ptr<Backend> make(const BackendCase& c, int num_threads = 2) {
  return make_backend(c.name, {.precision = c.precision, .num_threads = num_threads});
}

/// Standard normal values.
inline std::vector<float> random_values(std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

inline Tensor random_tensor(DType dtype, Shape shape, std::uint32_t seed) {
  const auto values = random_values(shape.num_elements(), seed);
  return to_dtype(TensorView(values.data(), DType::F32, shape), dtype);
}

/// Row-major f64 matrix.
struct Matrix64 {
  std::int64_t cols = 0;
  std::vector<double> values;
  double& at(std::int64_t r, std::int64_t c) { return values[static_cast<std::size_t>(r * cols + c)]; }
  double at(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * cols + c)]; }
};

/// Integer j of row t of an Int16PerGroup activation.
inline int integer_at(const Activation& x, std::int64_t t, std::int64_t j) {
  const auto* planes = reinterpret_cast<const std::int8_t*>(x.values.matrix<std::int16_t>().row(t));
  return 128 * planes[j] + planes[x.width() + j];
}

/// The values that a kernel computes with, in the producer's natural channel order: scales applied, permutation undone.
inline Matrix64 read_activation(const Activation& x) {
  Matrix64 matrix{x.width(), std::vector<double>(static_cast<std::size_t>(x.num_tokens * x.width()))};
  for (std::int64_t t = 0; t < x.num_tokens; ++t) {
    for (std::int64_t j = 0; j < x.width(); ++j) {
      double value = 0;
      if (x.format.kind == ActivationKind::Int16PerGroup) {
        value = static_cast<double>(x.scales.matrix<float>().row(t)[j / x.format.group_size]) * integer_at(x, t, j);
      } else if (x.values.dtype() == DType::F8E4M3) {
        const bool is_static = x.format.kind == ActivationKind::Fp8Static;
        const std::int64_t group = x.format.kind == ActivationKind::Fp8Per128 ? j / 128 : 0;
        const float scale = is_static ? x.format.static_scale : x.scales.matrix<float>().row(t)[group];
        value = to_float(x.values.matrix<Fp8E4M3>().row(t)[j]) * scale;
      } else {
        value = x.values.matrix<float>().row(t)[j];
      }
      const auto& permutation = x.format.input_permutation;
      matrix.at(t, permutation.empty() ? j : permutation[static_cast<std::size_t>(j)]) = value;
    }
  }
  return matrix;
}

/// An f32 activation that holds `values` [num_tokens, width].
inline Activation make_hidden(Backend& backend, std::int64_t num_tokens, std::int64_t width,
                              const std::vector<float>& values) {
  Activation hidden = backend.make_activation(num_tokens, width, backend.hidden_format());
  backend.write({values.data(), num_tokens, width, width}, hidden);
  return hidden;
}

inline std::vector<float> read_f32(Backend& backend, const Activation& x) {
  std::vector<float> values(static_cast<std::size_t>(x.num_tokens * x.width()));
  backend.read(x, {values.data(), x.num_tokens, x.width(), x.width()});
  return values;
}

}  // namespace nibble::backend::test
