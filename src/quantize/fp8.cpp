#include "weights/fp8.h"

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "quantize/quantizer.h"

namespace nibble::quantize {
namespace {

/// Weights round to nearest; static activation scales are what the calibration tokens span.
class Fp8 final : public Quantizer {
 public:
  explicit Fp8(const MethodOptions& options) : options_(options.fp8) {}

  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                               ThreadPool& pool) override {
    const std::vector<TensorView> views = views_of(linears);
    std::vector<weights::LinearWeights> quantized;
    for (weights::Fp8Weights& w : weights::quantize_fp8(views, options_.granularity, pool)) {
      if (options_.activations == ActivationScheme::Static) w.input_scale = weights::fp8_scale(inputs.range);
      quantized.emplace_back(std::move(w));
    }
    return quantized;
  }

 private:
  static std::vector<TensorView> views_of(std::span<const FloatLinear> linears) {
    std::vector<TensorView> views;
    for (const FloatLinear& linear : linears) views.emplace_back(linear.weight);
    return views;
  }

  Fp8Options options_;
};

}  // namespace

std::unique_ptr<Quantizer> make_fp8(const MethodOptions& options) {
  return std::make_unique<Fp8>(options);
}

}  // namespace nibble::quantize
