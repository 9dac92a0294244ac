#include <cmath>

#include "linear_cases.h"

namespace nibble::backend::test {
namespace {

using weights::Fp8Granularity;

/// The nearest E4M3 multiples of scale, by the definition in core/dtype.h.
void round_run(double* values, std::int64_t count, float scale) {
  for (std::int64_t j = 0; j < count; ++j) {
    values[j] = to_float(to_fp8_e4m3(static_cast<float>(values[j]) / scale)) * scale;
  }
}

void round_dynamically(double* values, std::int64_t count) {
  float largest = 0;
  for (std::int64_t j = 0; j < count; ++j) largest = std::max(largest, std::abs(static_cast<float>(values[j])));
  round_run(values, count, std::max(largest / 448, 1.0f / (448 * 512)));
}

/// What inputs become for weights of this kind: one row of `width`.
using RoundRow = void (*)(double* row, std::int64_t width);

class Fp8ActivationsOn : public testing::TestWithParam<BackendCase> {
 protected:
  static constexpr std::int64_t kWidth = 300;
  static constexpr std::int64_t kTokens = 19;

  /// The linear's output against f64 products of its weights with inputs that this test rounds.
  void expect_rounds(std::vector<weights::LinearPart> parts, RoundRow round_row) {
    std::vector<weights::LinearPart> copies;
    for (const auto& part : parts) copies.push_back(copy_of(part));
    const auto linear = backend_->make_linear(std::move(copies), {.name = "test"});
    Activation floats = backend_->make_activation(kTokens, kWidth, {});
    fill(floats);
    Matrix64 x = read_activation(floats);
    for (std::int64_t t = 0; t < kTokens; ++t) round_row(&x.at(t, 0), kWidth);
    Activation input = backend_->make_activation(kTokens, kWidth, linear->input_format());
    fill(input);
    const std::vector<float> y = run(*backend_, *linear, input);
    const Expected expected = expected_output(parts, x);
    for (std::size_t i = 0; i < y.size(); ++i) {
      ASSERT_NEAR(y[i], expected.y.values[i], (kWidth + 6) * std::ldexp(1.0, -24) * expected.magnitude.values[i]);
    }
  }

  std::unique_ptr<Backend> backend_ =
      make_backend(GetParam().name,
                   {.precision = GetParam().precision, .fp8_activations = Fp8Activations::Rounded, .num_threads = 2});

 private:
  /// Normal values, one token of zeros, one with an outlier.
  void fill(Activation& x) {
    std::vector<float> values = random_values(kTokens * kWidth, 5);
    std::fill_n(values.begin() + 3 * kWidth, kWidth, 0.0f);
    values[4 * kWidth + 7] = 900;
    Activation hidden = make_hidden(*backend_, kTokens, kWidth, values);
    const std::vector<float> ones(kWidth, 1.0f);
    backend_->norm(hidden, nullptr, backend_->make_vector(TensorView(ones.data(), DType::F32, {kWidth})), 1e-5f, x);
  }
};

std::vector<weights::LinearPart> make_parts(Fp8Granularity granularity, std::vector<float> input_scales) {
  std::vector<weights::LinearPart> parts;
  for (const float input_scale : input_scales) {
    parts.push_back(
        random_part({.label = "fp8", .out_features = 40, .in_features = 300, .has_bias = true, .fp8 = granularity},
                    static_cast<std::uint32_t>(parts.size())));
    std::get<weights::Fp8Weights>(parts.back().weights).input_scale = input_scale;
  }
  return parts;
}

TEST_P(Fp8ActivationsOn, RoundPerTokenWhereTheyAreDynamic) {
  for (const auto granularity : {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel}) {
    expect_rounds(make_parts(granularity, {0, 0}),
                  [](double* row, std::int64_t width) { round_dynamically(row, width); });
  }
}

TEST_P(Fp8ActivationsOn, RoundPer128InputsForBlocks) {
  expect_rounds(make_parts(Fp8Granularity::PerBlock, {0}), [](double* row, std::int64_t width) {
    for (std::int64_t first = 0; first < width; first += 128) {
      round_dynamically(row + first, std::min<std::int64_t>(128, width - first));
    }
  });
}

TEST_P(Fp8ActivationsOn, TakeTheLargestStaticScaleOfAFusedGroup) {
  expect_rounds(make_parts(Fp8Granularity::PerTensor, {0.004f, 0.006f, 0.002f}),
                [](double* row, std::int64_t width) { round_run(row, width, 0.006f); });
}

TEST_P(Fp8ActivationsOn, LeaveOtherPartsOfAGroupAlone) {
  const auto linear_with = [&](const WeightCase& other) {
    std::vector<weights::LinearPart> parts = make_parts(Fp8Granularity::PerChannel, {0});
    parts.push_back(random_part(other, 9));
    return backend_->make_linear(std::move(parts), {.name = "test"});
  };
  const WeightCase dense{.label = "dense", .out_features = 24, .in_features = 300, .dtype = DType::F32};
  const auto mixed = linear_with(dense);
  std::vector<weights::LinearPart> alone;
  alone.push_back(random_part(dense, 9));
  const auto only_dense = backend_->make_linear(std::move(alone), {.name = "test"});
  const Activation input = make_input(*backend_, *mixed, 5, 2);
  const std::vector<float> y = run(*backend_, *mixed, input);
  const std::vector<float> want = run(*backend_, *only_dense, input);
  for (std::size_t t = 0; t < 5; ++t) {
    for (std::size_t o = 0; o < 24; ++o) EXPECT_EQ(y[t * 64 + 40 + o], want[t * 24 + o]);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Fp8ActivationsOn, testing::ValuesIn(kBackendCases),
                         [](const auto& named) { return testing::PrintToString(named.param); });

}  // namespace
}  // namespace nibble::backend::test
