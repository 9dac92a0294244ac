#include <utility>
#include <vector>

#include "quantize/codebook.h"
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
  explicit SqueezeLlm(const MethodOptions& options) : bits_(options.grid.bits), options_(options.squeezellm) {}

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
  LossNeeds loss_needs() const override { return {.fisher = true}; }
  std::vector<weights::LinearWeights> quantize_by_loss(std::span<const FloatLinear> linears,
                                                       const StageLossStatistics& statistics,
                                                       ThreadPool& pool) override {
    std::vector<weights::LinearWeights> quantized;
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const auto sensitivity = statistics.linears[i].fisher.matrix<float>();
      quantized.emplace_back(
          quantize_linear(linears[i].weight.matrix<float>(), sensitivity, bits_, options_.sparsity, pool));
    }
    return quantized;
  }

 private:
  std::int32_t bits_;
  SqueezeLlmOptions options_;
};

}  // namespace

std::unique_ptr<Quantizer> make_squeezellm(const MethodOptions& options) {
  return std::make_unique<SqueezeLlm>(options);
}

}  // namespace nibble::quantize
