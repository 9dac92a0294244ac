#include "quantize/lnq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "core/dtype.h"
#include "quantize/output_error.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

struct Layer {
  Tensor weight;
  Tensor gram;
  Tensor importance;  // [out, in] the Gram matrix's diagonal in every row
};

Layer make_layer(std::int64_t out, std::int64_t in, std::uint32_t seed) {
  ThreadPool pool(2);
  Layer layer{random_matrix(out, in, seed), gram_of(correlated_inputs(4 * in, in, seed + 50), pool),
              Tensor::empty(DType::F32, {out, in})};
  for (std::int64_t o = 0; o < out; ++o) {
    for (std::int64_t k = 0; k < in; ++k) {
      layer.importance.matrix<float>().row(o)[k] = layer.gram.matrix<float>().row(k)[k];
    }
  }
  return layer;
}

weights::CodebookWeights refine(const Layer& layer, std::int32_t bits, double sparsity, const LnqSchedule& schedule,
                                int threads = 2) {
  ThreadPool pool(threads);
  const auto weight = layer.weight.matrix<float>();
  const SparsePositions sparse = select_sparse(weight, layer.importance.matrix<float>(), sparsity);
  const Tensor dense = without_sparse(weight, sparse);
  const Tensor importance = without_sparse(layer.importance.matrix<float>(), sparse);
  Tensor tables = fit_tables(dense.matrix<float>(), importance.matrix<float>(), bits, pool);
  const GptqFactor factor = factorize(layer.gram.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
  const Tensor codes =
      refine_codebook(dense.matrix<float>(), sparse, layer.gram.matrix<float>(), factor, schedule, tables, pool);
  return assemble_codebook(weight, std::move(tables), codes, sparse);
}

/// tr((W - Q) (G + damping) (W - Q)^T)
double damped_error(const Layer& layer, const weights::CodebookWeights& quantized) {
  ThreadPool pool(1);
  Tensor damped = Tensor::copy_of(layer.gram);
  const GptqFactor factor = factorize(layer.gram.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
  for (std::int64_t k = 0; k < damped.shape()[0]; ++k) damped.matrix<float>().row(k)[k] += factor.damping;
  return output_error(layer.weight.matrix<float>(), values_of(quantized).matrix<float>(), damped.matrix<float>(), pool);
}

double kmeans_error(const Layer& layer, std::int32_t bits, double sparsity) {
  ThreadPool pool(2);
  const auto weight = layer.weight.matrix<float>();
  const SparsePositions sparse = select_sparse(weight, layer.importance.matrix<float>(), sparsity);
  const Tensor dense = without_sparse(weight, sparse);
  const Tensor importance = without_sparse(layer.importance.matrix<float>(), sparse);
  Tensor tables = fit_tables(dense.matrix<float>(), importance.matrix<float>(), bits, pool);
  const Tensor codes = nearest_codes(dense.matrix<float>(), tables, pool);
  return damped_error(layer, assemble_codebook(weight, std::move(tables), codes, sparse));
}

struct LnqCase {
  std::int32_t bits;
  double sparsity;
};
class Lnq : public ::testing::TestWithParam<LnqCase> {};

TEST_P(Lnq, EveryRoundLowersTheErrorOfGptqOverKmeansTables) {
  const auto& [bits, sparsity] = GetParam();
  const Layer layer = make_layer(70, 160, 3);  // a full tile and a part; columns that fill no block
  double previous = kmeans_error(layer, bits, sparsity);
  for (const LnqSchedule& schedule : {LnqSchedule{0, 0}, LnqSchedule{1, 4}, LnqSchedule{3, 4}}) {
    const double error = damped_error(layer, refine(layer, bits, sparsity, schedule));
    EXPECT_LT(error, previous) << schedule.rounds << " rounds";
    previous = error;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Lnq,
                         ::testing::Values(LnqCase{4, 0}, LnqCase{3, 0}, LnqCase{4, 0.02}, LnqCase{3, 0.02}));

// Without sweeps a round is one least squares fit: no entry of any table can move to lower the error.
TEST(LnqTables, AreTheLeastSquaresOfTheirCodes) {
  const Layer layer = make_layer(5, 96, 7);
  weights::CodebookWeights quantized = refine(layer, 3, 0.02, {1, 0});
  const double best = damped_error(layer, quantized);
  for (Half& entry : quantized.lookup_table.span<Half>()) {
    const Half original = entry;
    for (const float step : {-0.02f, 0.02f}) {
      entry = to_half(to_float(original) + step);
      EXPECT_GT(damped_error(layer, quantized), best * (1 - 1e-4));
    }
    entry = original;
  }
}

TEST(LnqTables, SparseWeightsStayExact) {
  const Layer layer = make_layer(70, 160, 9);
  const weights::CodebookWeights quantized = refine(layer, 3, 0.03, {});
  const Tensor values = values_of(quantized);
  const auto rows = quantized.rows.span<std::int32_t>();
  EXPECT_EQ(rows.back(), static_cast<std::int32_t>(std::llround(0.03 * 70 * 160)));
  for (std::int64_t o = 0; o < 70; ++o) {
    for (std::int32_t i = rows[static_cast<std::size_t>(o)]; i < rows[static_cast<std::size_t>(o) + 1]; ++i) {
      const std::int32_t k = quantized.cols.span<std::int32_t>()[static_cast<std::size_t>(i)];
      EXPECT_NEAR(values.matrix<float>().row(o)[k], layer.weight.matrix<float>().row(o)[k], 1e-6);
    }
  }
}

TEST(LnqTables, AreTheSameForAnyNumberOfThreads) {
  const Layer layer = make_layer(200, 96, 4);
  const auto one = refine(layer, 4, 0.01, {}, 1);
  const auto three = refine(layer, 4, 0.01, {}, 3);
  EXPECT_TRUE(same_bytes(one.codes, three.codes));
  EXPECT_TRUE(same_bytes(one.lookup_table, three.lookup_table));
}

}  // namespace
}  // namespace nibble::quantize
