#include "backend/reference/reference_linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "backend/host_ops.h"

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

/// x as it looks once it has been E4M3: value → nearest code of value / scale → code * scale.
void round_run(std::span<float> values, float scale) {
  for (float& value : values) value = to_float(to_fp8_e4m3(value / scale)) * scale;
}

void round_dynamically(std::span<float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  round_run(values, std::max(largest / 448.0f, 1.0f / (448.0f * 512.0f)));  // the floor is vLLM's
}

void round_row(std::span<float> row, const ActivationFormat& format) {
  constexpr std::size_t kGroup = 128;
  switch (format.kind) {
    case ActivationKind::Fp8PerToken: return round_dynamically(row);
    case ActivationKind::Fp8Static: return round_run(row, format.static_scale);
    case ActivationKind::Fp8Per128:
      for (std::size_t first = 0; first < row.size(); first += kGroup) {
        round_dynamically(row.subspan(first, std::min(kGroup, row.size() - first)));
      }
      return;
    default: return;
  }
}

class ReferenceLinear final : public Linear {
 public:
  ReferenceLinear(std::vector<weights::LinearPart> parts, const BackendOptions& options, ThreadPool& pool)
      : pool_(&pool) {
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
      row_end_.push_back(first_row += rows);
      const auto* fp8 = std::get_if<weights::Fp8Weights>(&part.weights);
      const bool rounds = fp8 != nullptr && options.fp8_activations == Fp8Activations::Rounded;
      rounding_.push_back(rounds ? fp8_input_format(*fp8) : ActivationFormat{});
    }
    share_static_scale();
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes() + bias_.size_bytes());
  }

  void forward(const Activation& x, Activation& y) const override {
    y.num_tokens = x.num_tokens;
    const std::vector<Tensor> inputs = rounded_inputs(x);
    const auto output = y.values.matrix<float>();
    const auto weight = weight_.matrix<float>();
    const auto bias = bias_.span<float>();
    pool_->run((out_features_ + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(out_features_, (task + 1) * kRowsPerTask);
      for (std::int64_t t = 0; t < x.num_tokens; ++t) {
        for (std::int64_t o = task * kRowsPerTask; o < end; ++o) {
          const Tensor& input = inputs.empty() ? x.values : inputs[part_of(o)];
          output.row(t)[o] =
              dot(input.matrix<float>().row(t), weight.row(o), in_features_) + bias[static_cast<std::size_t>(o)];
        }
      }
    });
  }

 private:
  /// Who fuses q, k, v has one input for all of them: the largest scale serves.
  void share_static_scale() {
    float largest = 0;
    for (const ActivationFormat& format : rounding_) largest = std::max(largest, format.static_scale);
    for (ActivationFormat& format : rounding_) format.static_scale = largest;
  }

  /// The input of each part; nothing where none is rounded.
  std::vector<Tensor> rounded_inputs(const Activation& x) const {
    std::vector<Tensor> inputs;
    if (std::ranges::all_of(rounding_, [](const auto& format) { return format.kind == ActivationKind::F32; })) {
      return inputs;
    }
    for (const ActivationFormat& format : rounding_) {
      inputs.push_back(Tensor::copy_of(x.values.view().rows(0, x.num_tokens)));
      for (std::int64_t t = 0; t < x.num_tokens; ++t) round_row(inputs.back().matrix<float>().row_span(t), format);
    }
    return inputs;
  }

  std::size_t part_of(std::int64_t o) const {
    return static_cast<std::size_t>(std::ranges::upper_bound(row_end_, o) - row_end_.begin());
  }

  ThreadPool* pool_;
  Tensor weight_;                           // f32 [out_features, in_features]
  Tensor bias_;                             // f32 [out_features]
  std::vector<std::int64_t> row_end_;       // of each part
  std::vector<ActivationFormat> rounding_;  // of each part's input; F32: none
};

}  // namespace

std::unique_ptr<Linear> make_reference_linear(std::vector<weights::LinearPart> parts, const BackendOptions& options,
                                              ThreadPool& pool) {
  return std::make_unique<ReferenceLinear>(std::move(parts), options, pool);
}

}  // namespace nibble::backend
