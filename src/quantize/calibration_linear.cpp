#include "quantize/calibration_linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

class CalibrationLinear final : public backend::Linear {
 public:
  CalibrationLinear(Tensor weight, Tensor bias, ThreadPool& pool)
      : weight_(std::move(weight)), bias_(std::move(bias)), pool_(&pool) {
    out_features_ = weight_.shape()[0];
    in_features_ = weight_.shape()[1];
    size_bytes_ = static_cast<std::int64_t>(weight_.size_bytes() + bias_.size_bytes());
  }

  void forward(const backend::Activation& x, backend::Activation& y) const override {
    check(x.values.device().kind == DeviceKind::Host, "calibration linears compute on the host");
    y.num_tokens = x.num_tokens;
    const Matrix<float> output = y.values.matrix<float>().block(0, x.num_tokens);
    multiply_transposed(x.values.matrix<float>().block(0, x.num_tokens), weight_.matrix<float>(), output, *pool_);
    if (bias_.is_empty()) return;
    const auto bias = bias_.span<float>();
    for (std::int64_t t = 0; t < output.rows; ++t) {
      for (std::size_t o = 0; o < bias.size(); ++o) output.row(t)[o] += bias[o];
    }
  }

 private:
  Tensor weight_;  // f32 [out, in], the linears' rows one after another
  Tensor bias_;    // f32 [out], or empty
  ThreadPool* pool_;
};

std::unique_ptr<backend::Linear> fuse(std::span<const FloatLinear> linears, std::span<const Tensor* const> weights,
                                      ThreadPool& pool) {
  std::int64_t out_features = 0;
  bool has_bias = false;
  for (const FloatLinear& linear : linears) {
    out_features += linear.weight.shape()[0];
    has_bias = has_bias || !linear.bias.is_empty();
  }
  Tensor weight = Tensor::empty(DType::F32, {out_features, linears.front().weight.shape()[1]});
  Tensor bias = has_bias ? Tensor::zeros(DType::F32, {out_features}) : Tensor();
  std::int64_t row = 0;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    std::ranges::copy(weights[i]->span<float>(), weight.matrix<float>().row(row));
    if (!linears[i].bias.is_empty()) std::ranges::copy(linears[i].bias.span<float>(), bias.span<float>().begin() + row);
    row += linears[i].weight.shape()[0];
  }
  return std::make_unique<CalibrationLinear>(std::move(weight), std::move(bias), pool);
}

}  // namespace

std::unique_ptr<backend::Linear> make_calibration_linear(std::span<const FloatLinear> linears,
                                                         std::span<const Tensor> weights, ThreadPool& pool) {
  std::vector<const Tensor*> pointers;
  for (const Tensor& weight : weights) pointers.push_back(&weight);
  return fuse(linears, pointers, pool);
}

std::unique_ptr<backend::Linear> make_calibration_linear(std::span<const FloatLinear> linears, ThreadPool& pool) {
  std::vector<const Tensor*> pointers;
  for (const FloatLinear& linear : linears) pointers.push_back(&linear.weight);
  return fuse(linears, pointers, pool);
}

}  // namespace nibble::quantize
