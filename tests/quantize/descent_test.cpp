#include "quantize/descent.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/dtype.h"
#include "quantize/guided_gptq.h"
#include "quantize/output_error.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

struct Layer {
  Tensor weight;
  Tensor gram;
};

Layer make_layer(std::int64_t out, std::int64_t in, std::uint32_t seed) {
  ThreadPool pool(2);
  return {random_matrix(out, in, seed), gram_of(correlated_inputs(4 * in, in, seed + 50), pool)};
}

weights::GroupedIntWeights quantize_layer(const Layer& layer, std::int64_t group_size, const GridFormat& format,
                                          const DescentSchedule& schedule, int threads = 2) {
  ThreadPool pool(threads);
  const GptqFactor factor = factorize(layer.gram.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
  return gptq_with_descent(layer.weight.matrix<float>(), layer.gram.matrix<float>(), factor, group_size, format,
                           schedule, pool);
}

/// tr((W - Q) (G + damping) (W - Q)^T), what descent lowers.
double damped_error(const Layer& layer, const weights::GroupedIntWeights& quantized) {
  ThreadPool pool(1);
  Tensor damped = Tensor::copy_of(layer.gram);
  const GptqFactor factor = factorize(layer.gram.matrix<float>(), ColumnOrder::FallingDiagonal, 0.01);
  for (std::int64_t k = 0; k < damped.shape()[0]; ++k) damped.matrix<float>().row(k)[k] += factor.damping;
  return output_error(layer.weight.matrix<float>(), values_of(quantized).matrix<float>(), damped.matrix<float>(), pool);
}

struct DescentCase {
  GridFormat format;
  std::int64_t group_size;
};

class Descent : public ::testing::TestWithParam<DescentCase> {};

TEST_P(Descent, EveryRoundLowersTheErrorOfGptq) {
  const auto& [format, group_size] = GetParam();
  const Layer layer = make_layer(70, 192, 3);  // a full tile and a part; three blocks of columns
  double previous = damped_error(layer, quantize_layer(layer, group_size, format, {0, 0}));
  for (const DescentSchedule& schedule :
       {DescentSchedule{1, 0}, DescentSchedule{4, 0}, DescentSchedule{4, 1}, DescentSchedule{4, 4}}) {
    const double error = damped_error(layer, quantize_layer(layer, group_size, format, schedule));
    EXPECT_LT(error, previous) << schedule.sweeps << " sweeps, " << schedule.refit_rounds << " refits";
    previous = error;
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, Descent,
                         ::testing::Values(DescentCase{{4, Symmetry::Asymmetric}, 64},
                                           DescentCase{{4, Symmetry::Symmetric}, 32},
                                           DescentCase{{3, Symmetry::Asymmetric}, 192},
                                           DescentCase{{2, Symmetry::Symmetric}, 64},
                                           DescentCase{{8, Symmetry::Symmetric}, 96}));

// With so few columns the best codes can be found by trying them all, scales as they are.
TEST(CodeDescent, ChangesNoCodeThatIsBestGivenTheOthers) {
  const Layer layer = make_layer(9, 32, 8);
  const GridFormat format{3, Symmetry::Asymmetric};
  weights::GroupedIntWeights quantized = quantize_layer(layer, 32, format, {50, 0});
  const double best = damped_error(layer, quantized);
  std::vector<std::uint8_t> codes(32);
  for (std::int64_t o = 0; o < 9; ++o) {
    const auto row = quantized.codes.matrix<std::uint8_t>().row_span(o);
    weights::unpack_codes(row, 3, codes);
    for (std::size_t k = 0; k < codes.size(); ++k) {
      const std::uint8_t original = codes[k];
      for (std::uint8_t other = 0; other < 8; ++other) {
        codes[k] = other;
        weights::pack_codes(codes, 3, row);
        EXPECT_GE(damped_error(layer, quantized), best * (1 - 1e-5)) << o << " " << k;
      }
      codes[k] = original;
      weights::pack_codes(codes, 3, row);
    }
  }
}

TEST(CodeDescent, IsTheSameForAnyNumberOfThreads) {
  const Layer layer = make_layer(300, 128, 4);
  const auto one = quantize_layer(layer, 64, {4, Symmetry::Symmetric}, {}, 1);
  const auto three = quantize_layer(layer, 64, {4, Symmetry::Symmetric}, {}, 3);
  EXPECT_TRUE(same_bytes(one.codes, three.codes));
  EXPECT_TRUE(same_bytes(one.scales, three.scales));
}

TEST(CodeDescent, ColumnsThatNoTokenReachesStayNearTheirWeights) {
  Layer layer = make_layer(64, 64, 5);
  const auto gram = layer.gram.matrix<float>();
  for (std::int64_t k = 0; k < 64; ++k) {
    gram.row(7)[k] = gram.row(k)[7] = 0;
    layer.weight.matrix<float>().row(k)[7] = 0.3f;  // inside every row's grid
  }
  const auto quantized = quantize_layer(layer, 64, {4, Symmetry::Asymmetric}, {});
  const Tensor values = values_of(quantized);
  const Tensor scales = to_dtype(quantized.scales, DType::F32);
  for (std::int64_t o = 0; o < 64; ++o) {
    EXPECT_LE(std::abs(values.matrix<float>().row(o)[7] - 0.3f), 0.51f * std::abs(scales.matrix<float>().row(o)[0]));
  }
}

}  // namespace
}  // namespace nibble::quantize
