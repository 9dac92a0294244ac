#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend_cases.h"

namespace nibble::backend::test {
namespace {

/// Operations on rows, for every backend, format and width, 1 to 40 tokens.
using RowsCase = std::tuple<BackendCase, std::int64_t>;

class RowsOf : public testing::TestWithParam<RowsCase> {
 protected:
  std::int64_t width() const { return std::get<1>(GetParam()); }
  /// Formats that a linear of this backend could state for rows of this width.
  std::vector<ActivationFormat> formats() {
    permutation_.resize(static_cast<std::size_t>(width()));
    std::iota(permutation_.begin(), permutation_.end(), 0);
    std::ranges::reverse(permutation_);
    std::vector<ActivationFormat> formats{{}};
    if (std::get<0>(GetParam()).name == "reference") return formats;
    formats.emplace_back().input_permutation = permutation_;
    for (const std::int32_t group_size : {32, 64}) {
      if (width() % group_size != 0) continue;
      ActivationFormat integers;
      integers.kind = ActivationKind::Int16PerGroup;
      integers.group_size = group_size;
      formats.push_back(integers);
      integers.input_permutation = permutation_;
      formats.push_back(integers);
    }
    return formats;
  }

  /// Each value within f32 rounding, or within half a step of its group's scale; sums are those of the values.
  void expect_rows(const Activation& out, const std::vector<double>& want, double relative_error) {
    const Matrix64 rows = read_activation(out);
    const bool is_integer = out.format.kind == ActivationKind::Int16PerGroup;
    for (std::int64_t t = 0; t < out.num_tokens; ++t) {
      for (std::int64_t j = 0; j < width(); ++j) {
        const double expected = want[static_cast<std::size_t>(t * width() + j)];
        const double step = is_integer ? largest_scale(out, t) * 0.503 : 0;
        ASSERT_NEAR(rows.at(t, j), expected, step + relative_error * std::abs(expected) + 1e-12) << t << ", " << j;
      }
    }
    if (is_integer) expect_sums(out);
  }

  std::vector<std::int32_t> permutation_;
  std::unique_ptr<Backend> backend_ = make(std::get<0>(GetParam()));

 private:
  static double largest_scale(const Activation& out, std::int64_t t) {
    const auto scales = out.scales.matrix<float>().row_span(t);
    return *std::ranges::max_element(scales);
  }
  static void expect_sums(const Activation& out) {
    for (std::int64_t t = 0; t < out.num_tokens; ++t) {
      for (std::int64_t g = 0; g < out.sums.shape()[1]; ++g) {
        int sum = 0;
        int largest = 0;
        for (std::int64_t i = 0; i < out.format.group_size; ++i) {
          const int value = integer_at(out, t, g * out.format.group_size + i);
          sum += value;
          largest = std::max(largest, std::abs(value));
        }
        ASSERT_EQ(out.sums.matrix<std::int32_t>().row(t)[g], sum);
        // The largest value of a group takes the whole range.
        ASSERT_EQ(largest, 128 * 127);
      }
    }
  }
};

std::string case_name(const testing::TestParamInfo<RowsCase>& named) {
  return testing::PrintToString(std::get<0>(named.param)) + "_" + std::to_string(std::get<1>(named.param));
}

TEST_P(RowsOf, NormAddsTheDeltaAndScalesByTheRootMeanSquare) {
  for (const ActivationFormat& format : formats()) {
    for (const std::int64_t num_tokens : {1, 4, 40}) {
      const std::vector<float> x = random_values(num_tokens * width(), 1);
      const std::vector<float> d = random_values(num_tokens * width(), 2);
      const std::vector<float> weight = random_values(width(), 3);
      Activation hidden = make_hidden(*backend_, num_tokens, width(), x);
      const Activation delta = make_hidden(*backend_, num_tokens, width(), d);
      Activation out = backend_->make_activation(num_tokens, width(), format);
      backend_->norm(hidden, &delta, backend_->make_vector(TensorView(weight.data(), DType::F32, {width()})), 1e-5f,
                     out);

      std::vector<double> want(x.size());
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        double squares = 0;
        for (std::int64_t j = 0; j < width(); ++j) {
          const auto at = static_cast<std::size_t>(t * width() + j);
          want[at] = x[at] + d[at];
          ASSERT_EQ(hidden.values.span<float>()[at], x[at] + d[at]);
          squares += want[at] * want[at];
        }
        const double scale = 1 / std::sqrt(squares / static_cast<double>(width()) + 1e-5);
        for (std::int64_t j = 0; j < width(); ++j) {
          want[static_cast<std::size_t>(t * width() + j)] *= scale * weight[static_cast<std::size_t>(j)];
        }
      }
      // The sum of squares rounds once a term; half of that in the root, four more roundings.
      expect_rows(out, want, (static_cast<double>(width()) / 2 + 4) * std::ldexp(1.0, -24));
    }
  }
}

TEST_P(RowsOf, SiluMulEqualsFloat64) {
  for (const ActivationFormat& format : formats()) {
    std::vector<float> x = random_values(9 * 2 * width(), 4);
    // Far tails: silu must go to zero and to the identity without overflow.
    x[0] = -120;
    x[static_cast<std::size_t>(2 * width())] = 120;
    const Activation gate_up = make_hidden(*backend_, 9, 2 * width(), x);
    Activation out = backend_->make_activation(9, width(), format);
    backend_->silu_mul(gate_up, out);
    std::vector<double> want;
    for (std::int64_t t = 0; t < 9; ++t) {
      for (std::int64_t j = 0; j < width(); ++j) {
        const double gate = x[static_cast<std::size_t>(t * 2 * width() + j)];
        const double up = x[static_cast<std::size_t>(t * 2 * width() + width() + j)];
        want.push_back(gate / (1 + std::exp(-gate)) * up);
      }
    }
    // exp within 3 ulp, five roundings.
    expect_rows(out, want, 8 * std::ldexp(1.0, -24));
  }
}

TEST_P(RowsOf, NaNStaysVisibleThroughEveryFormat) {
  for (const ActivationFormat& format : formats()) {
    for (const float bad : {std::nanf(""), INFINITY}) {
      std::vector<float> x = random_values(2 * 2 * width(), 4);
      x[static_cast<std::size_t>(width() / 2)] = bad;
      const Activation gate_up = make_hidden(*backend_, 2, 2 * width(), x);
      Activation out = backend_->make_activation(2, width(), format);
      backend_->silu_mul(gate_up, out);
      const Matrix64 rows = read_activation(out);
      EXPECT_FALSE(std::isfinite(rows.at(0, width() / 2)));
      for (std::int64_t j = 0; j < width(); ++j) ASSERT_TRUE(std::isfinite(rows.at(1, j)));
    }
  }
}

TEST_P(RowsOf, RopeRotatesHalvesByTheirAngles) {
  const std::int64_t head_dim = width() / 2 * 2;
  if (head_dim > 256 || head_dim < 2) return;  // no head is that wide
  const AttentionSpec spec{
      .num_heads = 2, .num_kv_heads = 1, .head_dim = static_cast<std::int32_t>(head_dim), .scale = 1};
  std::vector<float> inv_freq;
  for (std::int64_t j = 0; j < head_dim / 2; ++j) {
    inv_freq.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim))));
  }
  const auto rope = backend_->make_rope({.inv_freq = inv_freq, .attention_factor = 1, .max_positions = 512});
  const auto cache =
      backend_->make_kv_cache({{.dtype = DType::F32, .num_kv_heads = 1, .head_dim = spec.head_dim}}, 1, 16);
  const std::vector<float> x = random_values(4 * head_dim, 6);
  Activation qkv = make_hidden(*backend_, 1, 4 * head_dim, x);
  const std::vector<std::int32_t> token{0}, position{500}, query_start{0, 1}, context_len{1}, block_table{0};
  const std::vector<std::int64_t> slot{5};
  const ForwardBatch batch{.tokens = token,
                           .positions = position,
                           .query_start = query_start,
                           .context_len = context_len,
                           .block_table = block_table,
                           .block_table_stride = 1,
                           .slot_mapping = slot,
                           .logit_rows = {}};
  backend_->prepare_step(batch, *cache);
  backend_->rope_kv_write(qkv, spec, *rope, *cache, 0, batch);
  const std::vector<float> rotated = read_f32(*backend_, qkv);
  for (std::int64_t h = 0; h < 3; ++h) {
    for (std::int64_t j = 0; j < head_dim / 2; ++j) {
      const auto a = static_cast<std::size_t>(h * head_dim + j);
      const auto b = static_cast<std::size_t>(h * head_dim + j + head_dim / 2);
      const double angle = static_cast<double>(500.0f * inv_freq[static_cast<std::size_t>(j)]);
      // cos and sin to 1 ulp, two products, one sum, of values below 5.
      EXPECT_NEAR(rotated[a], x[a] * std::cos(angle) - x[b] * std::sin(angle), 2e-6);
      EXPECT_NEAR(rotated[b], x[b] * std::cos(angle) + x[a] * std::sin(angle), 2e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RowsOf,
                         testing::Combine(testing::ValuesIn(kBackendCases),
                                          testing::Values<std::int64_t>(1, 31, 64, 100, 192, 1536)),
                         case_name);

}  // namespace
}  // namespace nibble::backend::test
