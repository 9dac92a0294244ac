#include "quantize/grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "quantize/rtn.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

constexpr GridFormat kSymmetric4{4, Symmetry::Symmetric};
constexpr GridFormat kAsymmetric4{4, Symmetry::Asymmetric};

/// A tile whose first rows are given, one group.
Tile tile_of(const std::vector<std::vector<float>>& rows) {
  Tile tile(static_cast<std::int64_t>(rows.front().size()));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t k = 0; k < rows[r].size(); ++k) {
      tile[static_cast<std::int64_t>(k)][static_cast<std::int64_t>(r)] = rows[r][k];
    }
  }
  return tile;
}

TEST(Grid, AsymmetricMinMaxSpansZeroToTheExtremes) {
  const Tile tile = tile_of({{-1, 0.5f, 2}, {1, 2, 3}, {-3, -2, -1}});
  const GroupGrid grid = fit_min_max(tile, 0, 3, kAsymmetric4);
  EXPECT_EQ(grid.scale[0], to_float(to_half(3.0f / 15)));
  EXPECT_EQ(grid.zero[0], 5);
  EXPECT_EQ(grid.scale[1], to_float(to_half(3.0f / 15)));
  EXPECT_EQ(grid.zero[1], 0);
  EXPECT_EQ(grid.zero[2], 15);
}

TEST(Grid, SymmetricZeroIsTheMiddle) {
  const Tile tile = tile_of({{-1, 0.5f, 2}});
  const GroupGrid grid = fit_min_max(tile, 0, 3, kSymmetric4);
  EXPECT_EQ(grid.scale[0], to_float(to_half(4.0f / 15)));
  EXPECT_EQ(grid.zero[0], 8);
}

TEST(Grid, RoundsTiesToEven) {
  const Tile tile = tile_of({{0.5f}, {1.5f}, {2.5f}, {-0.5f}});
  GroupGrid grid{};
  grid.scale.values.fill(1);
  grid.zero.values.fill(8);
  const Lanes codes = round_to_grid(tile[0], grid, kSymmetric4);
  EXPECT_EQ(codes[0], 8);
  EXPECT_EQ(codes[1], 10);
  EXPECT_EQ(codes[2], 10);
  EXPECT_EQ(codes[3], 8);
}

TEST(Grid, ClampsCodesEvenFarOutside) {
  const Tile tile = tile_of({{1e30f}, {-1e30f}});
  GroupGrid grid{};
  grid.scale.values.fill(0x1p-14f);
  grid.zero.values.fill(3);
  const Lanes codes = round_to_grid(tile[0], grid, kAsymmetric4);
  EXPECT_EQ(codes[0], 15);
  EXPECT_EQ(codes[1], 0);
}

TEST(Grid, ConstantAndZeroGroupsComeBackExactly) {
  ThreadPool pool(1);
  Tensor weight = Tensor::zeros(DType::F32, {3, 64});
  for (float& w : weight.matrix<float>().row_span(1)) w = 0.75f;
  for (float& w : weight.matrix<float>().row_span(2)) w = -0.75f;
  for (const GridFormat& format : {kSymmetric4, kAsymmetric4}) {
    const auto quantized = round_to_nearest(weight.matrix<float>(), 32, format, pool);
    const Tensor back = values_of(quantized);
    for (std::int64_t o = 0; o < 3; ++o) {
      for (std::int64_t k = 0; k < 64; ++k) {
        EXPECT_NEAR(back.matrix<float>().row(o)[k], weight.matrix<float>().row(o)[k],
                    format.symmetry == Symmetry::Symmetric ? 0.06 : 4e-4);
      }
    }
  }
}

TEST(Grid, RoundToNearestIsWithinHalfAStep) {
  ThreadPool pool(2);
  const Tensor weight = random_matrix(100, 96, 7);
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    const auto quantized = round_to_nearest(weight.matrix<float>(), 32, {bits, Symmetry::Asymmetric}, pool);
    const Tensor back = values_of(quantized);
    const Tensor scales = to_dtype(quantized.scales, DType::F32);
    for (std::int64_t o = 0; o < 100; ++o) {
      for (std::int64_t k = 0; k < 96; ++k) {
        // The ends may lie half a step and the rounding of the zero point outside.
        EXPECT_LE(std::abs(back.matrix<float>().row(o)[k] - weight.matrix<float>().row(o)[k]),
                  1.01f * scales.matrix<float>().row(o)[k / 32]);
      }
    }
  }
}

TEST(Grid, SymmetricFitTurnsToTheSideThatNeedsALevelMore) {
  // Levels -8 … 7: eight steps reach the larger extreme exactly, on whichever side it lies.
  const Tile tile = tile_of({{-8, -3, 2, 5}, {8, 3, -2, -5}});
  const std::vector<float> importance = {1, 1, 1, 1};
  const GroupGrid grid = fit_weighted(tile, 0, importance, kSymmetric4);
  EXPECT_GT(grid.scale[0], 0);
  EXPECT_LT(grid.scale[1], 0);
  EXPECT_EQ(grid.scale[1], -grid.scale[0]);
  for (std::int64_t k = 0; k < 4; ++k) {
    const Lanes codes = round_to_grid(tile[k], grid, kSymmetric4);
    EXPECT_EQ(codes[0], codes[1]);
    EXPECT_EQ(dequantize(codes, grid)[1], -dequantize(codes, grid)[0]);
  }
}

double importance_error(const Tensor& weight, const weights::GroupedIntWeights& quantized,
                        const std::vector<float>& importance) {
  const Tensor back = values_of(quantized);
  double error = 0;
  for (std::int64_t o = 0; o < weight.shape()[0]; ++o) {
    for (std::int64_t k = 0; k < weight.shape()[1]; ++k) {
      const double d = back.matrix<float>().row(o)[k] - weight.matrix<float>().row(o)[k];
      error += importance[static_cast<std::size_t>(k)] * d * d;
    }
  }
  return error;
}

TEST(Grid, WeightedFitBeatsMinMaxInItsOwnMeasure) {
  ThreadPool pool(2);
  const Tensor weight = random_matrix(130, 128, 3);
  std::vector<float> importance(128);
  for (std::size_t k = 0; k < importance.size(); ++k) importance[k] = k % 7 == 0 ? 10.0f : 0.1f;
  for (const Symmetry symmetry : {Symmetry::Symmetric, Symmetry::Asymmetric}) {
    for (const std::int32_t bits : {3, 4}) {
      const GridFormat format{bits, symmetry};
      const double min_max =
          importance_error(weight, round_to_nearest(weight.matrix<float>(), 64, format, pool), importance);
      const double weighted = importance_error(
          weight, round_to_weighted_grid(weight.matrix<float>(), importance, 64, format, pool), importance);
      EXPECT_LT(weighted, 0.8 * min_max);
    }
  }
}

}  // namespace
}  // namespace nibble::quantize
