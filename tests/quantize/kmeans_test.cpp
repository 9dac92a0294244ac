#include "quantize/kmeans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

using Row = std::vector<float>;

Row solve(const Row& values, const Row& weights, std::int32_t num_centers) {
  Row centers(static_cast<std::size_t>(num_centers));
  RowKmeans(num_centers).solve(values, weights, centers);
  return centers;
}

/// Σ weight · squared distance to the nearest center.
double error_of(const Row& values, const Row& weights, const Row& centers) {
  double error = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    double least = std::numeric_limits<double>::infinity();
    for (const float center : centers) {
      least = std::min(least, (double{values[i]} - center) * (double{values[i]} - center));
    }
    error += weights[i] * least;
  }
  return error;
}

/// The least error over every way to cut the sorted values into `num_centers` runs.
double least_error_by_trial(Row values, Row weights, std::int32_t num_centers) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](std::size_t i) { return values[i]; });
  const auto run_error = [&](std::size_t begin, std::size_t end) {
    double w = 0;
    double wx = 0;
    for (std::size_t i = begin; i < end; ++i) {
      w += weights[order[i]];
      wx += double{weights[order[i]]} * values[order[i]];
    }
    double error = 0;
    for (std::size_t i = begin; i < end; ++i) {
      error += weights[order[i]] * (values[order[i]] - wx / w) * (values[order[i]] - wx / w);
    }
    return error;
  };
  const auto least = [&](const auto& self, std::size_t begin, std::int32_t runs) -> double {
    if (runs == 1) return run_error(begin, order.size());
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t end = begin + 1; end < order.size(); ++end) {
      best = std::min(best, run_error(begin, end) + self(self, end, runs - 1));
    }
    return best;
  };
  return least(least, 0, num_centers);
}

Row random_row(std::size_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Row row(size);
  for (float& value : row) value = normal(random);
  return row;
}

/// Weights as a Fisher diagonal has them: over many orders of magnitude.
Row random_weights(std::size_t size, std::uint32_t seed) {
  Row row = random_row(size, seed);
  for (float& value : row) value = std::exp(3 * value);
  return row;
}

TEST(Kmeans, FindsTheLeastErrorOfAllPartitions) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    const std::size_t size = 6 + seed % 7;
    const Row values = random_row(size, seed);
    const Row weights = random_weights(size, seed + 100);
    for (const std::int32_t num_centers : {1, 2, 3, 5}) {
      const double least = least_error_by_trial(values, weights, num_centers);
      // f32 centers are off by 2^-24 of values of about 1, on weights that sum to some hundreds.
      EXPECT_NEAR(error_of(values, weights, solve(values, weights, num_centers)), least, 1e-9 + 1e-9 * least);
    }
  }
}

/// The same by dynamic programming over every split, for rows of `values` in ascending order.
double least_error_by_layers(const Row& values, const Row& weights, std::int32_t num_centers) {
  const std::size_t size = values.size();
  std::vector<double> previous(size + 1, std::numeric_limits<double>::infinity());
  previous[0] = 0;
  for (std::int32_t layer = 0; layer < num_centers; ++layer) {
    std::vector<double> least(size + 1, std::numeric_limits<double>::infinity());
    for (std::size_t end = 1; end <= size; ++end) {
      // The last run grows downwards; its error by Welford's update.
      double w = 0;
      double mean = 0;
      double error = 0;
      for (std::size_t begin = end; begin-- > 0;) {
        const double step = values[begin] - mean;
        w += weights[begin];
        mean += weights[begin] / w * step;
        error += weights[begin] * step * (values[begin] - mean);
        least[end] = std::min(least[end], previous[begin] + error);
      }
    }
    previous = least;
  }
  return previous[size];
}

TEST(Kmeans, EqualsPlainDynamicProgrammingOnLongRows) {
  for (const std::size_t size : {40, 333, 1500}) {
    Row values = random_row(size, 11);
    std::ranges::sort(values);
    const Row weights = random_weights(size, 12);
    for (const std::int32_t num_centers : {2, 8, 16}) {
      const double least = least_error_by_layers(values, weights, num_centers);
      Row centers(static_cast<std::size_t>(num_centers));
      EXPECT_NEAR(RowKmeans(num_centers).solve(values, weights, centers), least, 1e-10 * least);
    }
  }
}

TEST(Kmeans, FindsTheLeastErrorWhereItFallsInAStraightLine) {
  // Of 12 equal steps, 4, 5 and 6 runs have the errors 8, 5.5 and 3: no price for a run yields 5 of them.
  Row values;
  for (int i = 0; i < 12; ++i) values.push_back(static_cast<float>(i % 12));
  const Row weights(values.size(), 1);
  for (const std::int32_t num_centers : {2, 3, 4, 5, 7}) {
    const double least = least_error_by_trial(values, weights, num_centers);
    EXPECT_NEAR(error_of(values, weights, solve(values, weights, num_centers)), least, 1e-9);
  }
}

TEST(Kmeans, ReturnsTheErrorOfItsCenters) {
  const Row values = random_row(576, 1);
  const Row weights = random_weights(576, 2);
  Row centers(16);
  const double error = RowKmeans(16).solve(values, weights, centers);
  EXPECT_NEAR(error, error_of(values, weights, centers), 1e-5 * error);
  EXPECT_TRUE(std::ranges::is_sorted(centers));
}

TEST(Kmeans, NoStepOfLloydImprovesIt) {
  Row values = random_row(4096, 3);
  for (float& value : values) value = to_float(to_half(value));
  const Row weights = random_weights(4096, 4);
  Row centers = solve(values, weights, 16);
  const double error = error_of(values, weights, centers);
  for (int step = 0; step < 3; ++step) {
    std::vector<double> w(16);
    std::vector<double> wx(16);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto nearest = static_cast<std::size_t>(
          std::ranges::min_element(centers, {}, [&](float c) { return std::abs(c - values[i]); }) - centers.begin());
      w[nearest] += weights[i];
      wx[nearest] += double{weights[i]} * values[i];
    }
    for (std::size_t c = 0; c < 16; ++c) centers[c] = static_cast<float>(wx[c] / w[c]);
    EXPECT_GE(error_of(values, weights, centers), error * (1 - 1e-6));
  }
}

TEST(Kmeans, MergesEqualValues) {
  const Row centers = solve({2, -1, 2, 2, -1, 5}, {1, 1, 1, 1, 3, 1}, 3);
  EXPECT_EQ(centers, (Row{-1, 2, 5}));
  EXPECT_EQ(solve({0.0f, -0.0f, 1}, {1, 1, 1}, 2), (Row{0, 1}));
}

TEST(Kmeans, RepeatsTheLargestCenterWhereValuesAreFew) {
  EXPECT_EQ(solve({3, 1, 3}, {1, 1, 1}, 4), (Row{1, 3, 3, 3}));
  EXPECT_EQ(solve({-7}, {2}, 8), Row(8, -7));
}

TEST(Kmeans, IgnoresValuesOfWeightZero) {
  EXPECT_EQ(solve({1, 2, 1000, 3}, {1, 1, 0, 1}, 3), (Row{1, 2, 3}));
}

TEST(Kmeans, CountsAllValuesTheSameWhereAllWeightsAreZero) {
  const Row values = random_row(50, 5);
  EXPECT_EQ(solve(values, Row(50, 0), 4), solve(values, Row(50, 1), 4));
}

TEST(Kmeans, BearsWeightsThatVanishInTheSumBeforeThem) {
  Row values = random_row(300, 6);
  Row weights(300, 1e-38f);
  weights[17] = 1e30f;
  const Row centers = solve(values, weights, 8);
  for (const float center : centers) EXPECT_TRUE(std::isfinite(center));
  EXPECT_TRUE(std::ranges::find(centers, values[17]) != centers.end());
}

TEST(Kmeans, RowsDoNotDependOnThreads) {
  const Tensor weight = random_matrix(37, 301, 7);
  const Tensor importance = random_matrix(37, 301, 8);
  Tensor squares = Tensor::empty(DType::F32, {37, 301});
  for (std::size_t i = 0; i < squares.span<float>().size(); ++i) {
    squares.span<float>()[i] = importance.span<float>()[i] * importance.span<float>()[i];
  }
  Tensor centers[2] = {Tensor::empty(DType::F32, {37, 8}), Tensor::empty(DType::F32, {37, 8})};
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    kmeans_rows(weight.matrix<float>(), squares.matrix<float>(), centers[threads - 1].matrix<float>(), pool);
  }
  EXPECT_TRUE(same_bytes(centers[0], centers[1]));
}

}  // namespace
}  // namespace nibble::quantize
