#include "quantize/layer_report.h"

#include <gtest/gtest.h>

#include "quantize/rtn.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

TEST(LayerReport, CountsWeightsThatLieBeyondTheirGrid) {
  // Codes 0 … 15 around zero point 8 with scale 0.5 reach -4 … 3.5, and half a step more.
  weights::LinearWeights linear = weights::GroupedIntWeights{};
  auto& w = std::get<weights::GroupedIntWeights>(linear);
  w.out_features = 1;
  w.in_features = 8;
  w.bits = 4;
  w.group_size = 8;
  w.codes = Tensor::zeros(DType::U8, {1, weights::packed_row_bytes(8, 4)});
  w.scales = Tensor::zeros(DType::F32, {1, 1});
  w.scales.span<float>()[0] = 0.5f;
  w.zeros = Tensor::zeros(DType::I16, {1, 1});
  w.zeros.span<std::int16_t>()[0] = 8;
  Tensor weight = Tensor::zeros(DType::F32, {1, 8});
  const float values[] = {-4.24f, -4.26f, 3.74f, 3.76f, 0, 100, -100, 1};
  std::ranges::copy(values, weight.span<float>().begin());
  const Tensor dequantized = weights::dequantize(linear);
  const auto count = [&] {
    return 8 *
           describe_layer("x", weight.matrix<float>(), linear, dequantized.matrix<float>()).clipped_fraction.value();
  };
  EXPECT_EQ(count(), 4);
  // A negative scale mirrors the reach: -3.5 … 4.
  w.scales.span<float>()[0] = -0.5f;
  EXPECT_EQ(count(), 4);
  weight.span<float>()[0] = 4.2f;
  EXPECT_EQ(count(), 3);
}

TEST(LayerReport, SaysWhatIsStored) {
  ThreadPool pool(1);
  const Tensor weight = random_matrix(64, 128, 5, 0.1f);
  const weights::LinearWeights quantized =
      round_to_nearest(weight.matrix<float>(), 32, {4, Symmetry::Asymmetric}, pool);
  const Tensor dequantized = weights::dequantize(quantized);
  const LayerReport report = describe_layer("a.b", weight.matrix<float>(), quantized, dequantized.matrix<float>());
  EXPECT_EQ(report.name, "a.b");
  EXPECT_LT(report.clipped_fraction.value(), 0.01);  // a min-max grid reaches everything but for its scale's f16
  EXPECT_DOUBLE_EQ(report.bits_per_weight, 4 + (16 + 4) / 32.0);  // code, scale, zero point
  EXPECT_GT(report.weight_error, 1e-4);
  EXPECT_LT(report.weight_error, 0.05);
  EXPECT_GT(report.scale_min, 0);
  EXPECT_GT(report.scale_max, report.scale_min);
  EXPECT_FALSE(report.output_error.has_value());
}

TEST(LayerReport, ComesBackFromJsonToTheLastBit) {
  LayerReport report{.name = "a",
                     .kind = "int4 g64 sym",
                     .out_features = 3,
                     .in_features = 5,
                     .bits_per_weight = 4.0 / 3,
                     .weight_error = 1e-300,
                     .rtn_error = {},
                     .output_error = 0.1,
                     .scale_min = 1e-7f,
                     .scale_max = 0.3f,
                     .clipped_fraction = 1.0 / 7,
                     .seconds = 1.5};
  const LayerReport read = layer_report_from_json(parse_json(to_json(report).dump(), "test"));
  EXPECT_EQ(to_json(read), to_json(report));
  EXPECT_EQ(read.scale_min, report.scale_min);
  EXPECT_EQ(read.clipped_fraction, report.clipped_fraction);
  EXPECT_FALSE(read.rtn_error.has_value());
}

}  // namespace
}  // namespace nibble::quantize
