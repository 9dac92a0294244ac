#include "quantize/guided_gptq.h"

#include <memory>
#include <vector>

#include "core/log.h"
#include "quantize/quantizer.h"

namespace nibble::quantize {
namespace {

/// GuidedQuant (Kim et al. 2025, arXiv 2505.07004) with one Hessian for all rows of a linear: at 4 bits groups of rows
/// with their own gain nothing, and the Hessians of the float model serve without the quantized predecessors' inputs.
class GuidedGptq final : public Quantizer {
 public:
  explicit GuidedGptq(const MethodOptions& options) : options_(options) {}

  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear>, const StageInputs&, ThreadPool&) override {
    throw Error(ErrorCode::Internal, "guided GPTQ looks at the end loss");
  }

  LossNeeds loss_needs() const override { return {.guided_gram = true}; }

  std::vector<weights::LinearWeights> quantize_by_loss(std::span<const FloatLinear> linears,
                                                       const StageLossStatistics& statistics,
                                                       ThreadPool& pool) override {
    std::vector<weights::LinearWeights> quantized;
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const auto gram = statistics.linears[i].guided_gram.matrix<float>();
      const GptqFactor factor = factorize(gram, ColumnOrder::FallingDiagonal, options_.damp_percent);
      if (factor.damp_percent > options_.damp_percent) {
        log::warning("{}: Hessian singular, damping raised from {} to {}; more calibration samples may help",
                     linears[i].name, options_.damp_percent, factor.damp_percent);
      }
      const auto weight = linears[i].weight.matrix<float>();
      quantized.emplace_back(gptq_with_descent(weight, gram, factor, options_.group_size_of(weight.cols), options_.grid,
                                               DescentSchedule(), pool));
    }
    return quantized;
  }

 private:
  MethodOptions options_;
};

}  // namespace

weights::GroupedIntWeights gptq_with_descent(Matrix<const float> weight, Matrix<const float> gram,
                                             const GptqFactor& factor, std::int64_t group_size,
                                             const GridFormat& format, const DescentSchedule& schedule,
                                             ThreadPool& pool) {
  check(factor.column_order != ColumnOrder::GroupIndex, "descent keeps groups as they lie");
  const Hessian hessian{gram, factor.damping, factor.order};
  GroupedIntWriter writer(weight.rows, weight.cols, format.bits, group_size);
  pool.run(num_tiles(weight.rows), [&](std::int64_t tile_idx, int) {
    const Tile tile = load_tile(weight, tile_idx);
    QuantizedTile quantized = gptq_tile(tile, factor, group_size, format);
    descend(tile, hessian, group_size, format, schedule, quantized);
    writer.store(tile_idx, quantized);
  });
  return writer.take();
}

std::unique_ptr<Quantizer> make_guided_gptq(const MethodOptions& options) {
  return std::make_unique<GuidedGptq>(options);
}

}  // namespace nibble::quantize
