#include "quantize/awq.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <utility>

#include "core/log.h"
#include "quantize/gptq.h"
#include "quantize/guided_gptq.h"
#include "quantize/output_error.h"
#include "quantize/rtn.h"
#include "quantize/tile.h"

namespace nibble::quantize {
namespace {

// 20 exponents with both ends, as llm-compressor; AutoAWQ stops short of 1 and has no identity to fall back on.
constexpr int kNumRatios = 20;

/// Mean over rows of |w| / (largest |w| of the row's group), for each input channel.
std::vector<float> relative_weight_magnitude(std::span<const FloatLinear> linears, std::int64_t group_size) {
  const std::int64_t in_features = linears.front().weight.shape()[1];
  std::vector<double> sums(static_cast<std::size_t>(in_features));
  std::int64_t num_rows = 0;
  for (const FloatLinear& linear : linears) {
    const auto weight = linear.weight.matrix<float>();
    num_rows += weight.rows;
    for (std::int64_t o = 0; o < weight.rows; ++o) {
      for (std::int64_t first = 0; first < in_features; first += group_size) {
        float largest = 0;
        for (std::int64_t k = first; k < first + group_size; ++k)
          largest = std::max(largest, std::abs(weight.row(o)[k]));
        for (std::int64_t k = first; k < first + group_size; ++k) {
          sums[static_cast<std::size_t>(k)] += std::abs(weight.row(o)[k]) / (largest + 1e-6f);
        }
      }
    }
  }
  std::vector<float> means(sums.size());
  for (std::size_t k = 0; k < sums.size(); ++k) means[k] = static_cast<float>(sums[k] / static_cast<double>(num_rows));
  return means;
}

/// Mean over the input channels that a producer channel feeds.
std::vector<float> gather_mean(std::span<const float> values, std::span<const std::int32_t> channels) {
  const std::int32_t num_channels = *std::ranges::max_element(channels) + 1;
  std::vector<double> sums(static_cast<std::size_t>(num_channels));
  std::vector<std::int32_t> counts(static_cast<std::size_t>(num_channels));
  for (std::size_t k = 0; k < values.size(); ++k) {
    sums[static_cast<std::size_t>(channels[k])] += values[k];
    ++counts[static_cast<std::size_t>(channels[k])];
  }
  std::vector<float> means(sums.size());
  for (std::size_t c = 0; c < sums.size(); ++c) means[c] = static_cast<float>(sums[c] / std::max(counts[c], 1));
  return means;
}

/// s = x^r / w^(1-r), its largest and smallest value symmetric about 1.
std::vector<float> candidate_scale(const std::vector<float>& x, const std::vector<float>& w, float ratio) {
  std::vector<float> scale(x.size());
  for (std::size_t c = 0; c < x.size(); ++c) {
    scale[c] = std::max(std::pow(x[c], ratio) / (std::pow(w[c], 1 - ratio) + 1e-4f), 1e-4f);
  }
  const auto [smallest, largest] = std::ranges::minmax(scale);
  const float middle = std::sqrt(smallest * largest);
  for (float& s : scale) {
    s /= middle;
    if (!std::isfinite(s) || s <= 0) s = 1;
  }
  return scale;
}

std::vector<std::vector<float>> candidate_scales(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                                 std::span<const std::int32_t> channels, std::int64_t group_size) {
  const std::vector<float> x = gather_mean(inputs.mean_magnitude.span<float>(), channels);
  const std::vector<float> w = gather_mean(relative_weight_magnitude(linears, group_size), channels);
  std::vector<std::vector<float>> candidates;
  candidates.emplace_back(x.size(), 1.0f);
  for (int i = 0; i < kNumRatios; ++i) {
    candidates.push_back(candidate_scale(x, w, static_cast<float>(i) / (kNumRatios - 1)));
  }
  return candidates;
}

/// Σ over the tile's rows of δ G δ^T, with δ = Q(w s) / s - w.
double scaled_rounding_error(const Tile& weights, Matrix<const float> gram, std::span<const std::int32_t> channels,
                             std::span<const float> scale, std::int64_t group_size, const GridFormat& format) {
  const std::int64_t in_features = weights.num_columns();
  const auto scale_of = [&](std::int64_t k) {
    return scale[static_cast<std::size_t>(channels[static_cast<std::size_t>(k)])];
  };
  Tile scaled = weights;
  for (std::int64_t k = 0; k < in_features; ++k) {
    for (float& w : scaled[k].values) w *= scale_of(k);
  }
  for (std::int64_t first = 0; first < in_features; first += group_size) {
    const GroupGrid grid = fit_min_max(scaled, first, group_size, format);
    for (std::int64_t k = first; k < first + group_size; ++k) {
      const Lanes rounded = dequantize(round_to_grid(scaled[k], grid, format), grid);
      const float s = scale_of(k);
      for (std::int64_t r = 0; r < kTileRows; ++r) scaled[k][r] = rounded[r] / s - weights[k][r];
    }
  }
  return quadratic_form(scaled, gram);
}

class Awq final : public Quantizer {
 public:
  explicit Awq(const MethodOptions& options) : options_(options) {}

  void rescale(FloatBlock& block, std::span<const StageInputs> inputs, ThreadPool& pool) override {
    // A fold scales rows of an earlier linear, which min-max grids follow: the searches do not disturb one another.
    for (std::size_t s = 0; s < block.stages.size(); ++s) {
      const std::vector<std::int32_t> channels = fold_channels(block.spec, s);
      if (channels.empty()) continue;
      const std::int64_t group_size = options_.group_size_of(static_cast<std::int64_t>(channels.size()));
      const ScaleSearch search = search_scale(block.stages[s], inputs[s], channels, group_size, options_.grid, pool);
      log::debug("{}: scale search {:.4g} → {:.4g}", block.stages[s].front().name, search.identity_error,
                 search.best_error);
      fold_scale(block, s, search.scale);
    }
  }

  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                               ThreadPool& pool) override {
    return options_.rounding == Rounding::Gptq ? round_by_gptq(linears, inputs, pool) : round(linears, inputs, pool);
  }

 private:
  std::vector<weights::LinearWeights> round(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                            ThreadPool& pool) const {
    const std::vector<float> importance = damped_diagonal(inputs.gram.matrix<float>(), options_.damp_percent);
    std::vector<weights::LinearWeights> quantized;
    for (const FloatLinear& linear : linears) {
      const auto weight = linear.weight.matrix<float>();
      quantized.emplace_back(
          round_to_weighted_grid(weight, importance, options_.group_size_of(weight.cols), options_.grid, pool));
    }
    return quantized;
  }

  std::vector<weights::LinearWeights> round_by_gptq(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                                    ThreadPool& pool) const {
    const auto gram = inputs.gram.matrix<float>();
    const GptqFactor factor = factorize(gram, ColumnOrder::FallingDiagonal, options_.damp_percent);
    std::vector<weights::LinearWeights> quantized;
    for (const FloatLinear& linear : linears) {
      const auto weight = linear.weight.matrix<float>();
      quantized.emplace_back(gptq_with_descent(weight, gram, factor, options_.group_size_of(weight.cols), options_.grid,
                                               DescentSchedule(), pool));
    }
    return quantized;
  }

  MethodOptions options_;
};

}  // namespace

ScaleSearch search_scale(std::span<const FloatLinear> linears, const StageInputs& inputs,
                         std::span<const std::int32_t> channels, std::int64_t group_size, const GridFormat& format,
                         ThreadPool& pool) {
  const auto candidates = candidate_scales(linears, inputs, channels, group_size);
  const auto gram = inputs.gram.matrix<float>();
  std::vector<double> errors(candidates.size());
  for (const FloatLinear& linear : linears) {
    const auto weight = linear.weight.matrix<float>();
    const std::size_t num_candidates = candidates.size();
    std::vector<double> partial(static_cast<std::size_t>(num_tiles(weight.rows)) * num_candidates);
    pool.run(num_tiles(weight.rows), [&](std::int64_t tile_idx, int) {
      const Tile tile = load_tile(weight, tile_idx);
      double* tile_errors = partial.data() + static_cast<std::size_t>(tile_idx) * num_candidates;
      for (std::size_t c = 0; c < num_candidates; ++c) {
        tile_errors[c] = scaled_rounding_error(tile, gram, channels, candidates[c], group_size, format);
      }
    });
    for (std::size_t i = 0; i < partial.size(); ++i) errors[i % num_candidates] += partial[i];
  }
  const auto best = static_cast<std::size_t>(std::ranges::min_element(errors) - errors.begin());
  check(errors[best] <= errors[0], "AWQ: the identity is a candidate");
  return {candidates[best], errors[0], errors[best]};
}

std::unique_ptr<Quantizer> make_awq(const MethodOptions& options) {
  return std::make_unique<Awq>(options);
}

}  // namespace nibble::quantize
