#include "backend/reference/reference_linear.h"

#include <algorithm>
#include <array>

namespace nibble::backend {
namespace {

constexpr std::int64_t kRowsPerTask = 32;
constexpr std::int64_t kLanes = 8;

/// Eight partial sums in a fixed order: the result depends on x and w alone, never on batch or threads.
float dot(const float* x, const float* w, std::int64_t count) {
  std::array<float, kLanes> sums{};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
      sums[static_cast<std::size_t>(lane)] += x[i + lane] * w[i + lane];
  }
  float sum = 0;
  for (; i < count; ++i) sum += x[i] * w[i];
  for (const float lane : sums) sum += lane;
  return sum;
}

class ReferenceLinear final : public Linear {
 public:
  ReferenceLinear(std::vector<weights::LinearPart> parts, ThreadPool& pool) : pool_(&pool) {
    in_features_ = weights::in_features(parts.front().weights);
    for (const auto& part : parts) {
      check(weights::in_features(part.weights) == in_features_, "parts of a fused linear share their input");
      out_features_ += weights::out_features(part.weights);
    }
    weight_ = Tensor::empty(DType::F32, {out_features_, in_features_});
    bias_ = Tensor::zeros(DType::F32, {out_features_});
    std::int64_t first_row = 0;
    for (const auto& part : parts) {
      const std::int64_t rows = weights::out_features(part.weights);
      weights::dequantize_rows(part.weights, 0, weight_.matrix<float>().block(first_row, rows));
      if (!part.bias.is_empty()) std::ranges::copy(part.bias.span<float>(), bias_.span<float>().begin() + first_row);
      first_row += rows;
    }
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes() + bias_.size_bytes());
  }

  void forward(const Activation& x, Activation& y) const override {
    y.num_tokens = x.num_tokens;
    const auto input = x.values.matrix<float>();
    const auto output = y.values.matrix<float>();
    const auto weight = weight_.matrix<float>();
    const auto bias = bias_.span<float>();
    pool_->run((out_features_ + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(out_features_, (task + 1) * kRowsPerTask);
      for (std::int64_t t = 0; t < x.num_tokens; ++t) {
        for (std::int64_t o = task * kRowsPerTask; o < end; ++o) {
          output.row(t)[o] = dot(input.row(t), weight.row(o), in_features_) + bias[static_cast<std::size_t>(o)];
        }
      }
    });
  }

 private:
  ThreadPool* pool_;
  Tensor weight_;  // f32 [out_features, in_features]
  Tensor bias_;    // f32 [out_features]
};

}  // namespace

std::unique_ptr<Linear> make_reference_linear(std::vector<weights::LinearPart> parts, ThreadPool& pool) {
  return std::make_unique<ReferenceLinear>(std::move(parts), pool);
}

}  // namespace nibble::backend
