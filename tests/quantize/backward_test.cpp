#include "quantize/backward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "core/error.h"
#include "quantize/cross_entropy.h"
#include "random_layer.h"

// Every gradient against central differences of the operation written once more, naively and in f64.
namespace nibble::quantize {
namespace {

using Values = std::vector<double>;
using Forward = std::function<Values(const Values&)>;

Values random_values(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (double& x : values) x = normal(random);
  return values;
}

Tensor to_tensor(const Values& values, std::int64_t cols) {
  Tensor tensor = Tensor::empty(DType::F32, {static_cast<std::int64_t>(values.size()) / cols, cols});
  for (std::size_t i = 0; i < values.size(); ++i) tensor.span<float>()[i] = static_cast<float>(values[i]);
  return tensor;
}

/// ∂(Σ d_y y)/∂x[i], y = forward(x).
double difference(const Forward& forward, Values x, const Values& d_y, std::size_t i) {
  constexpr double kStep = 1e-5;
  const auto loss = [&](double value) {
    x[i] = value;
    const Values y = forward(x);
    double sum = 0;
    for (std::size_t j = 0; j < y.size(); ++j) sum += d_y[j] * y[j];
    return sum;
  };
  const double center = x[i];
  return (loss(center + kStep) - loss(center - kStep)) / (2 * kStep);
}

/// f32 against f64: the sums are short, so that 1e-4 of the largest value holds with room.
void expect_gradient(const Forward& forward, const Values& x, const Values& d_y, const Tensor& gradient,
                     std::size_t step = 1) {
  float largest = 0;
  for (const float g : gradient.span<float>()) largest = std::max(largest, std::abs(g));
  ASSERT_GT(largest, 0);
  for (std::size_t i = 0; i < x.size(); i += step) {
    ASSERT_NEAR(gradient.span<float>()[i], difference(forward, x, d_y, i), 1e-4 * largest) << "element " << i;
  }
}

TEST(RmsNormBackward, AgreesWithFiniteDifferencesAndAddsToTheGradient) {
  constexpr std::size_t kWidth = 37;
  const Values weight = random_values(kWidth, 1);
  const Forward forward = [&](const Values& x) {
    Values y(x.size());
    for (std::size_t first = 0; first < x.size(); first += kWidth) {
      double sum = 0;
      for (std::size_t k = 0; k < kWidth; ++k) sum += x[first + k] * x[first + k];
      const double inverse = 1 / std::sqrt(sum / kWidth + 1e-5);
      for (std::size_t k = 0; k < kWidth; ++k) y[first + k] = weight[k] * x[first + k] * inverse;
    }
    return y;
  };
  const Values x = random_values(3 * kWidth, 2);
  const Values d_y = random_values(3 * kWidth, 3);
  ThreadPool pool(2);
  Tensor gradient = Tensor::zeros(DType::F32, {3, kWidth});
  const Tensor weights = to_tensor(weight, kWidth);
  const auto add = [&] {
    rms_norm_backward(to_tensor(x, kWidth).matrix<float>(), weights.span<float>(), 1e-5f,
                      to_tensor(d_y, kWidth).matrix<float>(), gradient.matrix<float>(), pool);
  };
  add();
  expect_gradient(forward, x, d_y, gradient);
  const float once = gradient.span<float>()[5];
  add();
  EXPECT_FLOAT_EQ(gradient.span<float>()[5], 2 * once);
}

TEST(SiluMulBackward, AgreesWithFiniteDifferences) {
  constexpr std::size_t kWidth = 19;
  const Forward forward = [](const Values& x) {
    Values y;
    for (std::size_t first = 0; first < x.size(); first += 2 * kWidth) {
      for (std::size_t k = 0; k < kWidth; ++k) {
        const double gate = x[first + k];
        y.push_back(gate / (1 + std::exp(-gate)) * x[first + kWidth + k]);
      }
    }
    return y;
  };
  Values x = random_values(4 * 2 * kWidth, 4);
  x[0] = -30;  // saturated on both sides
  x[1] = 30;
  const Values d_y = random_values(4 * kWidth, 5);
  ThreadPool pool(2);
  Tensor gradient = Tensor::empty(DType::F32, {4, 2 * kWidth});
  silu_mul_backward(to_tensor(x, 2 * kWidth).matrix<float>(), to_tensor(d_y, kWidth).matrix<float>(),
                    gradient.matrix<float>(), pool);
  expect_gradient(forward, x, d_y, gradient);
}

struct AttentionCase {
  backend::AttentionSpec spec;
  std::vector<std::int32_t> starts;
  std::size_t step;  // every step-th element is checked
};

/// Rotary embedding and causal attention, naively.
class AttentionBackward : public ::testing::TestWithParam<AttentionCase> {
 protected:
  const backend::AttentionSpec& spec() const { return GetParam().spec; }
  std::size_t num_tokens() const { return static_cast<std::size_t>(GetParam().starts.back()); }
  std::size_t q_width() const { return static_cast<std::size_t>(spec().q_width()); }
  std::size_t width() const { return static_cast<std::size_t>(spec().q_width() + 2 * spec().kv_width()); }
  std::size_t head_dim() const { return static_cast<std::size_t>(spec().head_dim); }

  std::vector<float> inverse_frequencies() const {
    std::vector<float> inv_freq;
    for (std::size_t j = 0; j < head_dim() / 2; ++j) {
      inv_freq.push_back(std::pow(100.0f, -2.0f * static_cast<float>(j) / static_cast<float>(head_dim())));
    }
    return inv_freq;
  }

  Values rotated(Values qkv) const {
    const auto inv_freq = inverse_frequencies();
    const std::size_t num_rotated = static_cast<std::size_t>(spec().num_heads + spec().num_kv_heads);
    for (std::size_t s = 0; s + 1 < GetParam().starts.size(); ++s) {
      const auto first = static_cast<std::size_t>(GetParam().starts[s]);
      for (std::size_t t = first; t < static_cast<std::size_t>(GetParam().starts[s + 1]); ++t) {
        for (std::size_t h = 0; h < num_rotated; ++h) {
          double* head = qkv.data() + t * width() + h * head_dim();
          for (std::size_t j = 0; j < head_dim() / 2; ++j) {
            const double angle = static_cast<double>(t - first) * inv_freq[j];
            const double a = head[j];
            const double b = head[j + head_dim() / 2];
            head[j] = a * std::cos(angle) - b * std::sin(angle);
            head[j + head_dim() / 2] = b * std::cos(angle) + a * std::sin(angle);
          }
        }
      }
    }
    return qkv;
  }

  void attend(const Values& qkv, std::size_t first, std::size_t t, std::size_t head, double* out) const {
    const std::size_t kv_head = head / static_cast<std::size_t>(spec().num_heads / spec().num_kv_heads);
    const double* q = qkv.data() + t * width() + head * head_dim();
    const auto window = static_cast<std::size_t>(spec().sliding_window);
    const std::size_t begin = window > 0 && t + 1 > first + window ? t + 1 - window : first;
    double total = 0;
    for (std::size_t j = begin; j <= t; ++j) {
      const double* k = qkv.data() + j * width() + q_width() + kv_head * head_dim();
      const double* v = k + spec().kv_width();
      double score = 0;
      for (std::size_t i = 0; i < head_dim(); ++i) score += q[i] * k[i];
      const double weight = std::exp(score * spec().scale);
      total += weight;
      for (std::size_t i = 0; i < head_dim(); ++i) out[i] += weight * v[i];
    }
    for (std::size_t i = 0; i < head_dim(); ++i) out[i] /= total;
  }

  Values forward(const Values& x) const {
    const Values qkv = rotated(x);
    Values out(num_tokens() * q_width());
    for (std::size_t s = 0; s + 1 < GetParam().starts.size(); ++s) {
      const auto first = static_cast<std::size_t>(GetParam().starts[s]);
      for (std::size_t t = first; t < static_cast<std::size_t>(GetParam().starts[s + 1]); ++t) {
        for (std::size_t h = 0; h < static_cast<std::size_t>(spec().num_heads); ++h) {
          attend(qkv, first, t, h, out.data() + t * q_width() + h * head_dim());
        }
      }
    }
    return out;
  }
};

TEST_P(AttentionBackward, AgreesWithFiniteDifferences) {
  const Values x = random_values(num_tokens() * width(), 6);
  const Values d_out = random_values(num_tokens() * q_width(), 7);
  const backend::HostRope rope(
      {.inv_freq = inverse_frequencies(), .attention_factor = 1, .max_positions = GetParam().starts.back()});
  ThreadPool pool(2);
  const auto columns = static_cast<std::int64_t>(width());
  Tensor gradient = Tensor::empty(DType::F32, {GetParam().starts.back(), columns});
  attention_backward(to_tensor(rotated(x), columns).matrix<float>(), spec(), rope, GetParam().starts,
                     to_tensor(d_out, spec().q_width()).matrix<float>(), gradient.matrix<float>(), pool);
  expect_gradient([&](const Values& values) { return forward(values); }, x, d_out, gradient, GetParam().step);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionBackward,
    ::testing::Values(
        AttentionCase{{.num_heads = 4, .num_kv_heads = 4, .head_dim = 6, .scale = 0.5f}, {0, 7}, 1},
        AttentionCase{{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8, .scale = 0.35f}, {0, 5, 6, 13}, 1},
        AttentionCase{
            {.num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .scale = 0.5f, .sliding_window = 3}, {0, 9}, 1},
        // Longer than a block of queries.
        AttentionCase{{.num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .scale = 0.5f}, {0, 150}, 61},
        AttentionCase{
            {.num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .scale = 0.5f, .sliding_window = 70}, {0, 150}, 61}));

TEST(CrossEntropyBackward, AgreesWithFiniteDifferencesForTheTextsLabels) {
  constexpr std::size_t kVocab = 300;  // more than one block of sums
  const std::vector<std::int32_t> next = {7, -1, 299};
  const Values x = random_values(3 * kVocab, 8);
  const Forward forward = [&](const Values& logits) {
    double loss = 0;
    for (std::size_t r = 0; r < 3; ++r) {
      if (next[r] < 0) continue;
      double total = 0;
      for (std::size_t k = 0; k < kVocab; ++k) total += std::exp(logits[r * kVocab + k]);
      loss += std::log(total) - logits[r * kVocab + static_cast<std::size_t>(next[r])];
    }
    return Values{loss};
  };
  ThreadPool pool(2);
  Tensor logits = to_tensor(x, kVocab);
  const double loss = cross_entropy_backward(logits.matrix<float>(), {{.labels = LossLabels::Text}, 0, next}, pool);
  EXPECT_NEAR(loss, forward(x)[0], 1e-4);
  expect_gradient(forward, x, {1}, logits);
}

TEST(CrossEntropyBackward, DrawsLabelsFromTheSoftmaxByPositionAlone) {
  constexpr std::int64_t kRows = 20000;
  const std::vector<double> probabilities = {0.5, 0.25, 0.15, 0.1};
  ThreadPool pool(2);
  const auto labels_of = [&](std::int64_t first, std::int64_t count, std::uint64_t seed) {
    Tensor logits = Tensor::empty(DType::F32, {count, 4});
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::size_t k = 0; k < 4; ++k) {
        logits.matrix<float>().row(r)[k] = static_cast<float>(std::log(probabilities[k])) + 3;
      }
    }
    cross_entropy_backward(logits.matrix<float>(), {{.labels = LossLabels::Sampled, .seed = seed}, first, {}}, pool);
    std::vector<int> labels;
    for (std::int64_t r = 0; r < count; ++r) {
      const auto row = logits.matrix<float>().row_span(r);
      labels.push_back(static_cast<int>(std::ranges::min_element(row) - row.begin()));
    }
    return labels;
  };
  const std::vector<int> labels = labels_of(0, kRows, 5);
  for (std::size_t k = 0; k < 4; ++k) {
    const auto count = static_cast<double>(std::ranges::count(labels, static_cast<int>(k)));
    EXPECT_NEAR(count / kRows, probabilities[k], 4 * std::sqrt(probabilities[k] / kRows)) << k;
  }
  EXPECT_EQ(labels_of(1000, 50, 5), std::vector<int>(labels.begin() + 1000, labels.begin() + 1050));
  EXPECT_NE(labels_of(0, 50, 6), std::vector<int>(labels.begin(), labels.begin() + 50));
}

TEST(CrossEntropyBackward, LogitsThatAreNotFiniteAreAnError) {
  ThreadPool pool(1);
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    Tensor logits = Tensor::zeros(DType::F32, {2, 40});
    logits.span<float>()[57] = bad;
    EXPECT_THROW(cross_entropy_backward(logits.matrix<float>(), {}, pool), Error);
  }
}

}  // namespace
}  // namespace nibble::quantize
