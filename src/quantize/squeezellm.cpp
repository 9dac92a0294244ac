#include <utility>
#include <vector>

#include "quantize/codebook.h"
#include "quantize/gptq.h"
#include "quantize/lnq.h"
#include "quantize/quantizer.h"

namespace nibble::quantize {
namespace {

/// Sensitive weights and outliers apart, the rest by exact k-means of each row under the sensitivity.
weights::CodebookWeights quantize_linear(Matrix<const float> weight, Matrix<const float> sensitivity, std::int32_t bits,
                                         double sparsity, ThreadPool& pool) {
  const SparsePositions sparse = select_sparse(weight, sensitivity, sparsity);
  const Tensor dense = without_sparse(weight, sparse);
  const Tensor importance = without_sparse(sensitivity, sparse);
  Tensor tables = fit_tables(dense.matrix<float>(), importance.matrix<float>(), bits, pool);
  const Tensor codes = nearest_codes(dense.matrix<float>(), tables, pool);
  return assemble_codebook(weight, std::move(tables), codes, sparse);
}

class SqueezeLlm final : public Quantizer {
 public:
  explicit SqueezeLlm(const MethodOptions& options)
      : bits_(options.grid.bits),
        guidance_(options.guidance),
        damp_percent_(options.damp_percent),
        options_(options.squeezellm) {}

  /// Sensitivity::Hessian: E[x²], the same for every output, which is what the layer's own error weighs weights by.
  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                               ThreadPool& pool) override {
    check(options_.sensitivity == Sensitivity::Hessian, "Fisher sensitivity goes through quantize_by_loss");
    const auto gram = inputs.gram.matrix<float>();
    std::vector<float> diagonal(static_cast<std::size_t>(gram.rows));
    for (std::int64_t k = 0; k < gram.rows; ++k) diagonal[static_cast<std::size_t>(k)] = gram.row(k)[k];
    std::vector<weights::LinearWeights> quantized;
    for (const FloatLinear& linear : linears) {
      const auto weight = linear.weight.matrix<float>();
      const Matrix<const float> sensitivity{diagonal.data(), weight.rows, weight.cols, 0};
      quantized.emplace_back(quantize_linear(weight, sensitivity, bits_, options_.sparsity, pool));
    }
    return quantized;
  }

  /// Sensitivity::Fisher.
  LossNeeds loss_needs() const override { return {.fisher = true, .guided_gram = guidance_ == Guidance::EndLoss}; }
  std::vector<weights::LinearWeights> quantize_by_loss(std::span<const FloatLinear> linears,
                                                       const StageLossStatistics& statistics,
                                                       ThreadPool& pool) override {
    std::vector<weights::LinearWeights> quantized;
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const LossStatistics& loss = statistics.linears[i];
      const auto weight = linears[i].weight.matrix<float>();
      const auto sensitivity = loss.fisher.matrix<float>();
      if (guidance_ == Guidance::EndLoss) {
        quantized.emplace_back(refine_linear(weight, loss, pool));
      } else {
        quantized.emplace_back(quantize_linear(weight, sensitivity, bits_, options_.sparsity, pool));
      }
    }
    return quantized;
  }

 private:
  /// SqueezeLLM's tables as a start for LNQ.
  weights::CodebookWeights refine_linear(Matrix<const float> weight, const LossStatistics& loss,
                                         ThreadPool& pool) const {
    const auto sensitivity = loss.fisher.matrix<float>();
    const auto gram = loss.guided_gram.matrix<float>();
    const SparsePositions sparse = select_sparse(weight, sensitivity, options_.sparsity);
    const Tensor dense = without_sparse(weight, sparse);
    const Tensor importance = without_sparse(sensitivity, sparse);
    Tensor tables = fit_tables(dense.matrix<float>(), importance.matrix<float>(), bits_, pool);
    const GptqFactor factor = factorize(gram, ColumnOrder::FallingDiagonal, damp_percent_);
    const Tensor codes = refine_codebook(dense.matrix<float>(), sparse, gram, factor, LnqSchedule(), tables, pool);
    return assemble_codebook(weight, std::move(tables), codes, sparse);
  }

  std::int32_t bits_;
  Guidance guidance_;
  double damp_percent_;
  SqueezeLlmOptions options_;
};

}  // namespace

std::unique_ptr<Quantizer> make_squeezellm(const MethodOptions& options) {
  return std::make_unique<SqueezeLlm>(options);
}

}  // namespace nibble::quantize
