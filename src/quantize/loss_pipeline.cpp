#include "quantize/loss_pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "core/log.h"
#include "quantize/output_error.h"
#include "quantize/rtn.h"
#include "quantize/run_identity.h"

namespace nibble::quantize {
namespace {

/// Σ F (w - ŵ)² / Σ F w²
double fisher_error(const Tensor& weight, const Tensor& quantized, const Tensor& fisher) {
  double error = 0;
  double norm = 0;
  const auto w = weight.span<float>();
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double difference = w[i] - quantized.span<float>()[i];
    error += fisher.span<float>()[i] * difference * difference;
    norm += static_cast<double>(fisher.span<float>()[i]) * w[i] * w[i];
  }
  return norm > 0 ? error / norm : 0;
}

}  // namespace

LossPipeline::LossPipeline(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options,
                           backend::Backend& backend, StageQuantizers& quantizers)
    : checkpoint_(checkpoint), plan_(plan), options_(options), backend_(backend), quantizers_(quantizers) {
  if (!options.statistics.empty()) store_.emplace(options.statistics, statistics_identity(checkpoint, options));
}

void LossPipeline::begin_walk(const CalibrationSamples& samples, const std::filesystem::path& block_inputs) {
  const LossNeeds needs = store_ ? LossStore::kNeeds : quantizers_.for_blocks().loss_needs();
  walk_.emplace(checkpoint_, plan_, backend_, samples, options_.method_options.loss, needs, block_inputs);
}

void LossPipeline::forward() {
  log::info("the float model's loss on the calibration tokens: {:.4f} nats a token", walk_->forward());
}

std::vector<StageLossStatistics> LossPipeline::statistics_of(const FloatBlock& block, std::int64_t block_idx) {
  if (!walk_) return store_->load(block, block_idx);
  std::vector<StageLossStatistics> statistics = walk_->backward(block, block_idx);
  for (std::size_t s = 0; s < block.stages.size(); ++s) expect_finite(statistics[s], block.stages[s]);
  if (store_) store_->save(block, block_idx, statistics);
  return statistics;
}

JournalEntry LossPipeline::quantize_block(std::int64_t block_idx, Output& output) {
  Stopwatch watch;
  const FloatBlock block = load_float_block(checkpoint_, plan_.blocks[static_cast<std::size_t>(block_idx)]);
  const std::vector<StageLossStatistics> statistics = statistics_of(block, block_idx);
  output.add_norms(block);
  JournalEntry entry{.block = block.spec.prefix};
  for (std::size_t s = block.stages.size(); s-- > 0;) {
    const std::vector<FloatLinear>& linears = block.stages[s];
    const StageChoice& choice = plan_.stages[static_cast<std::size_t>(block_idx)][s];
    const auto quantized = quantize_stage(linears, statistics[s], choice);
    output.add_stage(linears, quantized, choice);
    const std::size_t first_layer = entry.layers.size();
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const LossStatistics& loss = statistics[s].linears[i];
      const Tensor dequantized = weights::dequantize(quantized[i]);
      LayerReport& layer = entry.layers.emplace_back(describe_layer(linears[i].name, linears[i].weight.matrix<float>(),
                                                                    quantized[i], dequantized.matrix<float>()));
      layer.output_error = error_of(linears[i].weight, dequantized, loss);
      layer.rtn_error = error_of(linears[i].weight, rounded(linears[i].weight, choice.options), loss);
    }
    share_time(std::span(entry.layers).subspan(first_layer), watch.lap());
  }
  return entry;
}

void LossPipeline::expect_finite(const StageLossStatistics& statistics, const std::vector<FloatLinear>& linears) {
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const LossStatistics& loss = statistics.linears[i];
    const auto is_finite = [](const Tensor& tensor) {
      return std::ranges::all_of(tensor.span<float>(), [](float x) { return std::isfinite(x); });
    };
    if ((loss.fisher.is_empty() || is_finite(loss.fisher)) &&
        (loss.guided_gram.is_empty() || is_finite(loss.guided_gram))) {
      continue;
    }
    throw Error(ErrorCode::Corrupt, linears[i].name +
                                        ": the end loss's gradient is NaN or infinite here; the float model is broken "
                                        "in this layer or in one beside it");
  }
}

std::vector<weights::LinearWeights> LossPipeline::quantize_stage(const std::vector<FloatLinear>& linears,
                                                                 const StageLossStatistics& statistics,
                                                                 const StageChoice& choice) {
  if (choice.is_skipped) return keep_all_float(linears);
  try {
    return quantizers_.of(choice).quantize_by_loss(linears, statistics, backend_.pool());
  } catch (const Error& error) {
    throw error.in(linears.front().name);
  }
}

Tensor LossPipeline::rounded(const Tensor& weight, const MethodOptions& method) const {
  const auto matrix = weight.matrix<float>();
  // A codebook serves a whole row.
  const std::int64_t group_size =
      plan_.method->makes == Makes::GroupedInt ? method.group_size_of(matrix.cols) : matrix.cols;
  return weights::dequantize(round_to_nearest(matrix, group_size, method.grid, backend_.pool()));
}

double LossPipeline::error_of(const Tensor& weight, const Tensor& quantized, const LossStatistics& statistics) const {
  if (statistics.guided_gram.is_empty()) return fisher_error(weight, quantized, statistics.fisher);
  return output_error(weight.matrix<float>(), quantized.matrix<float>(), statistics.guided_gram.matrix<float>(),
                      backend_.pool());
}

}  // namespace nibble::quantize
