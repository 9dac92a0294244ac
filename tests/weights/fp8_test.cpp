#include "weights/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/expect_error.h"
#include "core/tensors_equal.h"
#include "weights/kinds.h"

namespace nibble::weights {
namespace {

Tensor random_matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  Tensor matrix = Tensor::empty(DType::F32, {rows, cols});
  for (float& value : matrix.span<float>()) value = normal(random);
  return matrix;
}

Fp8Weights quantize_one(const Tensor& weight, Fp8Granularity granularity, int num_threads = 2) {
  ThreadPool pool(num_threads);
  const TensorView view = weight;
  return std::move(quantize_fp8({&view, 1}, granularity, pool).front());
}

float largest_of(const Tensor& weight, std::int64_t first_row, std::int64_t rows, std::int64_t first,
                 std::int64_t cols) {
  float largest = 0;
  for (std::int64_t o = first_row; o < std::min(first_row + rows, weight.shape()[0]); ++o) {
    for (std::int64_t i = first; i < std::min(first + cols, weight.shape()[1]); ++i) {
      largest = std::max(largest, std::abs(weight.matrix<float>().row(o)[i]));
    }
  }
  return largest;
}

TEST(QuantizeFp8, ScalesSpreadTheLargestWeightOverTheWholeRange) {
  const Tensor weight = random_matrix(200, 300, 1);
  const Fp8Weights tensor = quantize_one(weight, Fp8Granularity::PerTensor);
  EXPECT_EQ(tensor.scale.shape(), Shape({1}));
  EXPECT_EQ(tensor.scale.span<float>()[0], largest_of(weight, 0, 200, 0, 300) / 448);
  const Fp8Weights channel = quantize_one(weight, Fp8Granularity::PerChannel);
  EXPECT_EQ(channel.scale.shape(), Shape({200}));
  EXPECT_EQ(channel.scale.span<float>()[130], largest_of(weight, 130, 1, 0, 300) / 448);
  const Fp8Weights block = quantize_one(weight, Fp8Granularity::PerBlock);
  EXPECT_EQ(block.scale.shape(), Shape({2, 3}));  // ragged: 72 rows and 44 columns are left
  EXPECT_EQ(block.scale.matrix<float>().row(1)[2], largest_of(weight, 128, 128, 256, 128) / 448);
}

TEST(QuantizeFp8, CodesAreTheNearestOnesToTheQuotient) {
  const Tensor weight = random_matrix(150, 140, 2);
  for (const auto granularity : {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel, Fp8Granularity::PerBlock}) {
    const Fp8Weights w = quantize_one(weight, granularity);
    EXPECT_NO_THROW(validate_kind(w));
    for (std::int64_t o = 0; o < 150; ++o) {
      for (std::int64_t i = 0; i < 140; ++i) {
        const float scale = granularity == Fp8Granularity::PerTensor ? w.scale.span<float>()[0]
                            : granularity == Fp8Granularity::PerChannel
                                ? w.scale.span<float>()[static_cast<std::size_t>(o)]
                                : w.scale.matrix<float>().row(o / 128)[i / 128];
        ASSERT_EQ(w.weight.matrix<Fp8E4M3>().row(o)[i].bits,
                  to_fp8_e4m3(weight.matrix<float>().row(o)[i] / scale).bits);
      }
    }
  }
}

TEST(QuantizeFp8, DependsOnNeitherThreadsNorTheSourcesDType) {
  const Tensor half = to_dtype(random_matrix(300, 260, 3), DType::F16);
  const Tensor whole = to_dtype(half, DType::F32);
  for (const auto granularity : {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel, Fp8Granularity::PerBlock}) {
    const Fp8Weights one = quantize_one(half, granularity, 1);
    const Fp8Weights other = quantize_one(whole, granularity, 3);
    EXPECT_TRUE(equal(one.weight, other.weight));
    EXPECT_TRUE(equal(one.scale, other.scale));
  }
}

TEST(QuantizeFp8, PartsShareOneScalePerTensorAndNoneOtherwise) {
  const Tensor q = random_matrix(16, 64, 4);
  Tensor k = random_matrix(8, 64, 5);
  for (float& value : k.span<float>()) value *= 7;
  ThreadPool pool(1);
  const std::vector<TensorView> parts{q, k};
  const auto tensor = quantize_fp8(parts, Fp8Granularity::PerTensor, pool);
  EXPECT_EQ(tensor[0].scale.span<float>()[0], largest_of(k, 0, 8, 0, 64) / 448);
  EXPECT_TRUE(equal(tensor[0].scale, tensor[1].scale));
  const auto block = quantize_fp8(parts, Fp8Granularity::PerBlock, pool);
  EXPECT_EQ(block[0].scale.span<float>()[0], largest_of(q, 0, 16, 0, 64) / 448);
}

TEST(QuantizeFp8, RowsOfZerosGetAScaleOfOne) {
  Tensor weight = random_matrix(4, 32, 6);
  for (std::int64_t i = 0; i < 32; ++i) weight.matrix<float>().row(2)[i] = i % 2 == 0 ? 0.0f : 1e-45f;
  const Fp8Weights w = quantize_one(weight, Fp8Granularity::PerChannel);
  EXPECT_EQ(w.scale.span<float>()[2], 1);
  EXPECT_NO_THROW(validate_kind(w));
}

TEST(QuantizeFp8, RefusesWeightsThatAreNoNumbers) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Tensor weight = random_matrix(140, 32, 7);
    weight.matrix<float>().row(139)[31] = bad;
    for (const auto granularity : {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel, Fp8Granularity::PerBlock}) {
      expect_error(ErrorCode::Corrupt, "NaN or infinity", [&] { quantize_one(weight, granularity); });
    }
  }
}

TEST(Fp8Weights, RefusesScalesThatAreNotPositiveNumbersAndCodesThatAreNaN) {
  const auto refused = [](const char* part, auto&& change) {
    Fp8Weights w = quantize_one(random_matrix(8, 16, 8), Fp8Granularity::PerChannel);
    change(w);
    expect_error(ErrorCode::Corrupt, part, [&] { validate_kind(w); });
  };
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    refused("weight_scale: found", [&](Fp8Weights& w) { w.scale.span<float>()[3] = bad; });
  }
  refused("weight holds NaN", [](Fp8Weights& w) { w.weight.span<Fp8E4M3>()[5].bits = 0xff; });
  refused("input_scale", [](Fp8Weights& w) { w.input_scale = NAN; });
}

}  // namespace
}  // namespace nibble::weights
