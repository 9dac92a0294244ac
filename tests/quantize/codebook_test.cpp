#include "quantize/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "core/dtype.h"
#include "quantize/quantizer.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

Tensor random_half_matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  return to_dtype(to_dtype(random_matrix(rows, cols, seed), DType::F16), DType::F32);
}

Tensor squares(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  Tensor matrix = random_matrix(rows, cols, seed);
  for (float& value : matrix.span<float>()) value *= value;
  return matrix;
}

std::set<std::pair<std::int64_t, std::int32_t>> places_of(const SparsePositions& sparse) {
  std::set<std::pair<std::int64_t, std::int32_t>> places;
  for (std::size_t o = 0; o + 1 < sparse.rows.size(); ++o) {
    for (const std::int32_t col : sparse.row(static_cast<std::int64_t>(o))) places.emplace(o, col);
  }
  return places;
}

/// The value that the `count` largest reach down to.
float floor_of(std::vector<float> values, std::size_t count) {
  std::ranges::sort(values, std::greater<>());
  return values[count - 1];
}

TEST(Codebook, TakesTheMostSensitiveThenTheLargestOfTheRest) {
  const Tensor weight = random_matrix(40, 500, 1);
  const Tensor sensitivity = squares(40, 500, 2);
  const SparsePositions sparse = select_sparse(weight.matrix<float>(), sensitivity.matrix<float>(), 0.0045);
  const auto places = places_of(sparse);
  EXPECT_EQ(places.size(), 90u);  // 0.45 % of 20000, of which 10 are sensitive
  const auto weights = weight.span<float>();
  const auto sensitivities = sensitivity.span<float>();
  const float sensitive = floor_of({sensitivities.begin(), sensitivities.end()}, 10);
  std::vector<float> others;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (sensitivities[i] < sensitive) others.push_back(std::abs(weights[i]));
  }
  const float large = floor_of(others, 80);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const bool is_taken = places.contains({static_cast<std::int64_t>(i / 500), static_cast<std::int32_t>(i % 500)});
    EXPECT_EQ(is_taken, sensitivities[i] >= sensitive || std::abs(weights[i]) >= large) << i;
  }
}

TEST(Codebook, TakesOnlySensitiveWeightsWhereThereIsNoRoomForMore) {
  const Tensor weight = random_matrix(40, 500, 1);
  const Tensor sensitivity = squares(40, 500, 2);
  const auto values = sensitivity.span<float>();
  const float sensitive = floor_of({values.begin(), values.end()}, 10);
  const auto places = places_of(select_sparse(weight.matrix<float>(), sensitivity.matrix<float>(), 0.0005));
  EXPECT_EQ(places.size(), 10u);
  for (const auto& [o, col] : places) EXPECT_GE(sensitivity.matrix<float>().row(o)[col], sensitive);
  EXPECT_TRUE(places_of(select_sparse(weight.matrix<float>(), sensitivity.matrix<float>(), 0)).empty());
}

TEST(Codebook, TakesTheLargestOfEquallySensitiveWeights) {
  const Tensor weight = random_matrix(40, 500, 3);
  std::vector<float> diagonal(500, 1);
  diagonal[123] = 5;
  const Matrix<const float> shared{diagonal.data(), 40, 500, 0};
  const auto places = places_of(select_sparse(weight.matrix<float>(), shared, 0.0005));
  ASSERT_EQ(places.size(), 10u);
  float least = 1e9f;
  for (const auto& [o, col] : places) {
    EXPECT_EQ(col, 123);
    least = std::min(least, std::abs(weight.matrix<float>().row(o)[col]));
  }
  for (std::int64_t o = 0; o < 40; ++o) {
    if (places.contains({o, 123})) continue;
    EXPECT_LE(std::abs(weight.matrix<float>().row(o)[123]), least);
  }
}

TEST(Codebook, TakesNoZeroWeightsAndNoneThatNothingDependsOn) {
  Tensor weight = Tensor::zeros(DType::F32, {4, 100});
  Tensor sensitivity = Tensor::zeros(DType::F32, {4, 100});
  EXPECT_TRUE(places_of(select_sparse(weight.matrix<float>(), sensitivity.matrix<float>(), 0.05)).empty());
  weight.span<float>()[7] = -3;
  EXPECT_EQ(places_of(select_sparse(weight.matrix<float>(), sensitivity.matrix<float>(), 0.05)).size(), 1u);
}

TEST(Codebook, GivesEveryWeightTheNearestEntry) {
  ThreadPool pool(2);
  const Tensor weight = random_matrix(19, 77, 4);
  for (const std::int64_t entries : {8, 16}) {
    const Tensor tables = to_dtype(random_matrix(19, entries, 5), DType::F16);
    const Tensor codes = nearest_codes(weight.matrix<float>(), tables, pool);
    for (std::int64_t o = 0; o < 19; ++o) {
      const auto table = tables.matrix<Half>().row_span(o);
      for (std::int64_t k = 0; k < 77; ++k) {
        const float w = weight.matrix<float>().row(o)[k];
        const auto distance = [&](Half entry) { return std::abs(w - to_float(entry)); };
        const auto nearest = std::ranges::min_element(table, {}, distance);
        EXPECT_EQ(codes.matrix<std::uint8_t>().row(o)[k], nearest - table.begin());
      }
    }
  }
}

std::vector<FloatLinear> one_linear(const Tensor& weight) {
  std::vector<FloatLinear> linears(1);
  linears[0].name = "m";
  linears[0].weight = Tensor::copy_of(weight);
  return linears;
}

weights::CodebookWeights squeeze(const Tensor& weight, const Tensor& fisher, std::int32_t bits, double sparsity,
                                 int num_threads = 2) {
  MethodOptions options;
  options.grid.bits = bits;
  options.squeezellm.sparsity = sparsity;
  ThreadPool pool(num_threads);
  StageLossStatistics statistics;
  statistics.linears.resize(1);
  statistics.linears[0].fisher = Tensor::copy_of(fisher);
  auto quantized = make_squeezellm(options)->quantize_by_loss(one_linear(weight), statistics, pool);
  weights::validate(quantized[0]);
  return std::get<weights::CodebookWeights>(std::move(quantized[0]));
}

double weighted_error(const Tensor& weight, const Tensor& fisher, const weights::CodebookWeights& quantized) {
  Tensor values = Tensor::empty(DType::F32, weight.shape());
  weights::dequantize_rows_of(quantized, 0, values.matrix<float>());
  double error = 0;
  for (std::size_t i = 0; i < values.span<float>().size(); ++i) {
    const double difference = double{weight.span<float>()[i]} - values.span<float>()[i];
    error += fisher.span<float>()[i] * difference * difference;
  }
  return error;
}

TEST(SqueezeLlm, RestoresSparseWeightsExactly) {
  const Tensor weight = random_half_matrix(24, 320, 6);
  const Tensor fisher = squares(24, 320, 7);
  for (const std::int32_t bits : {3, 4}) {
    const weights::CodebookWeights quantized = squeeze(weight, fisher, bits, 0.02);
    EXPECT_EQ(quantized.vals.num_elements(), 154);
    const SparsePositions sparse = select_sparse(weight.matrix<float>(), fisher.matrix<float>(), 0.02);
    Tensor values = Tensor::empty(DType::F32, weight.shape());
    weights::dequantize_rows_of(quantized, 0, values.matrix<float>());
    for (const auto& [o, col] : places_of(sparse)) {
      EXPECT_EQ(values.matrix<float>().row(o)[col], weight.matrix<float>().row(o)[col]);
    }
  }
}

TEST(SqueezeLlm, KeepsADenseCodebookWithoutSparsity) {
  const weights::CodebookWeights quantized = squeeze(random_half_matrix(24, 320, 6), squares(24, 320, 7), 4, 0);
  EXPECT_TRUE(quantized.rows.is_empty());
  EXPECT_EQ(quantized.lookup_table.dtype(), DType::F16);
}

TEST(SqueezeLlm, MoreBitsAndSparseValuesLowerTheError) {
  const Tensor weight = random_half_matrix(24, 576, 8);
  const Tensor fisher = squares(24, 576, 9);
  const auto error = [&](std::int32_t bits, double sparsity) {
    return weighted_error(weight, fisher, squeeze(weight, fisher, bits, sparsity));
  };
  EXPECT_LT(error(4, 0), 0.4 * error(3, 0));
  EXPECT_LT(error(4, 0.0045), 0.95 * error(4, 0));
  EXPECT_LT(error(3, 0.0045), 0.95 * error(3, 0));
}

TEST(SqueezeLlm, RepresentsFewDistinctValuesExactly) {
  Tensor weight = Tensor::empty(DType::F32, {3, 64});
  for (std::size_t i = 0; i < 192; ++i) weight.span<float>()[i] = static_cast<float>(i % 8) * 0.25f - 1;
  const Tensor fisher = squares(3, 64, 10);
  EXPECT_EQ(weighted_error(weight, fisher, squeeze(weight, fisher, 3, 0)), 0);
}

TEST(SqueezeLlm, BearsARowWithoutAnySensitivity) {
  const Tensor weight = random_half_matrix(4, 96, 11);
  Tensor fisher = squares(4, 96, 12);
  std::ranges::fill(fisher.span<float>().subspan(96, 96), 0.0f);
  const weights::CodebookWeights quantized = squeeze(weight, fisher, 4, 0.01);
  Tensor values = Tensor::empty(DType::F32, {4, 96});
  weights::dequantize_rows_of(quantized, 0, values.matrix<float>());
  for (std::int64_t k = 0; k < 96; ++k) {
    EXPECT_NEAR(values.matrix<float>().row(1)[k], weight.matrix<float>().row(1)[k], 0.5);
  }
}

TEST(SqueezeLlm, DoesNotDependOnThreads) {
  const Tensor weight = random_half_matrix(53, 320, 13);
  const Tensor fisher = squares(53, 320, 14);
  const weights::CodebookWeights one = squeeze(weight, fisher, 3, 0.0045, 1);
  const weights::CodebookWeights two = squeeze(weight, fisher, 3, 0.0045, 2);
  EXPECT_TRUE(same_bytes(one.codes, two.codes));
  EXPECT_TRUE(same_bytes(one.lookup_table, two.lookup_table));
  EXPECT_TRUE(same_bytes(one.rows, two.rows));
  EXPECT_TRUE(same_bytes(one.cols, two.cols));
  EXPECT_TRUE(same_bytes(one.vals, two.vals));
}

TEST(SqueezeLlm, WeighsByTheInputsWhereAskedForTheHessian) {
  ThreadPool pool(2);
  const Tensor weight = random_half_matrix(8, 96, 15);
  StageInputs inputs;
  inputs.gram = gram_of(correlated_inputs(400, 96, 16), pool);
  MethodOptions options;
  options.squeezellm = {.sensitivity = Sensitivity::Hessian, .sparsity = 0};
  const auto quantized = make_squeezellm(options)->quantize(one_linear(weight), inputs, pool);
  Tensor diagonal = Tensor::empty(DType::F32, weight.shape());
  for (std::int64_t o = 0; o < 8; ++o) {
    for (std::int64_t k = 0; k < 96; ++k) diagonal.matrix<float>().row(o)[k] = inputs.gram.matrix<float>().row(k)[k];
  }
  const auto& by_hessian = std::get<weights::CodebookWeights>(quantized[0]);
  Tensor ones = Tensor::empty(DType::F32, weight.shape());
  std::ranges::fill(ones.span<float>(), 1.0f);
  EXPECT_LT(weighted_error(weight, diagonal, by_hessian),
            0.9 * weighted_error(weight, diagonal, squeeze(weight, ones, 4, 0)));
}

}  // namespace
}  // namespace nibble::quantize
