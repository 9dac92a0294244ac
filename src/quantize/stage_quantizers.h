#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "quantize/layer_choice.h"
#include "quantize/quantizer.h"

namespace nibble::quantize {

/// The method's quantizers: one for each scheme that the stages of a plan ask for.
class StageQuantizers {
 public:
  /// `method` outlives it.
  StageQuantizers(const Method& method, const MethodOptions& options) : method_(method), options_(options) {}

  /// For what concerns a whole block.
  Quantizer& for_blocks() { return of(options_); }
  /// The choice is not a skipped one.
  Quantizer& of(const StageChoice& choice) { return of(choice.options); }

 private:
  using Scheme = std::tuple<std::int32_t, std::int64_t, Symmetry>;  // what --layer can change

  Quantizer& of(const MethodOptions& options) {
    auto& quantizer = quantizers_[{options.grid.bits, options.group_size, options.grid.symmetry}];
    if (!quantizer) quantizer = method_.make(options);
    return *quantizer;
  }

  const Method& method_;
  MethodOptions options_;
  std::map<Scheme, std::unique_ptr<Quantizer>> quantizers_;
};

/// Skipped linears as they are written and served: their weights in f16.
inline std::vector<weights::LinearWeights> keep_all_float(std::span<const FloatLinear> linears) {
  std::vector<weights::LinearWeights> kept;
  for (const FloatLinear& linear : linears) {
    kept.emplace_back(weights::DenseWeights{to_dtype(linear.weight, DType::F16)});
  }
  return kept;
}

}  // namespace nibble::quantize
