#include "quantize/coverage.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>

namespace nibble::quantize {
namespace {

StageInputs inputs_of(std::vector<float> magnitudes) {
  StageInputs inputs;
  inputs.mean_magnitude = Tensor::empty(DType::F32, {static_cast<std::int64_t>(magnitudes.size())});
  std::ranges::copy(magnitudes, inputs.mean_magnitude.span<float>().begin());
  return inputs;
}

std::vector<FloatLinear> linear(const std::string& name) {
  std::vector<FloatLinear> linears(1);
  linears[0].name = name;
  return linears;
}

template <class Body>
std::string stderr_of(const Body& body) {
  testing::internal::CaptureStderr();
  body();
  return testing::internal::GetCapturedStderr();
}

TEST(ActivationCoverage, CountsChannelsFarBelowTheMedianAndNamesTheWorstStage) {
  ActivationCoverage coverage;
  std::vector<float> healthy(100);
  std::iota(healthy.begin(), healthy.end(), 1.0f);
  coverage.add(linear("good"), inputs_of(healthy));
  EXPECT_EQ(coverage.num_unreached(), 0);
  EXPECT_EQ(stderr_of([&] { coverage.report(); }), "");
  std::vector<float> poor(healthy);
  poor[3] = 0;
  poor[5] = 0.01f;
  poor[7] = 0.06f;  // above a thousandth of 51
  coverage.add(linear("poor"), inputs_of(poor));
  EXPECT_EQ(coverage.num_unreached(), 2);
  EXPECT_EQ(coverage.num_channels(), 200);
  EXPECT_EQ(stderr_of([&] { coverage.report(); }), "");  // one in a hundred is not more than that
  coverage.add(linear("dead"), inputs_of(std::vector<float>(50)));
  EXPECT_EQ(coverage.num_unreached(), 52);
  EXPECT_NE(stderr_of([&] { coverage.report(); }).find("52 of 250 input channels, most of them in dead (50 of 50)"),
            std::string::npos);
}

TEST(PoorSamples, FewTokensAndFewDifferentOnesAreWarnedOf) {
  CalibrationSamples samples;
  samples.tokens.assign(4000, 7);
  const std::string monotonous = stderr_of([&] { warn_of_poor_samples(samples, 1000, 50'000); });
  EXPECT_EQ(monotonous.find("are few"), std::string::npos);
  EXPECT_NE(monotonous.find("only 1 different tokens of a vocabulary of 50000"), std::string::npos);
  std::iota(samples.tokens.begin(), samples.tokens.end(), 0);
  EXPECT_EQ(stderr_of([&] { warn_of_poor_samples(samples, 1000, 50'000); }), "");
  EXPECT_NE(stderr_of([&] { warn_of_poor_samples(samples, 1001, 50'000); }).find("4000 calibration tokens are few"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::quantize
