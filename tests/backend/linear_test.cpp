#include <cmath>

#include "linear_cases.h"

namespace nibble::backend::test {
namespace {

const std::vector<WeightCase> kWeightCases{
    {.label = "F32Tiny", .out_features = 1, .in_features = 1, .dtype = DType::F32},
    {.label = "F32Odd", .out_features = 37, .in_features = 75, .dtype = DType::F32, .has_bias = true},
    {.label = "F16", .out_features = 96, .in_features = 576, .dtype = DType::F16},
    {.label = "F16Odd", .out_features = 83, .in_features = 129, .dtype = DType::F16, .has_bias = true},
    {.label = "BF16", .out_features = 50, .in_features = 200, .dtype = DType::BF16},
    {.label = "Int4G32", .out_features = 48, .in_features = 96, .bits = 4, .group_size = 32},
    {.label = "Int4G64", .out_features = 70, .in_features = 576, .bits = 4, .group_size = 64, .has_bias = true},
    {.label = "Int4G128Sym",
     .out_features = 33,
     .in_features = 640,
     .bits = 4,
     .group_size = 128,
     .is_symmetric = true},
    {.label = "Int4WholeRow", .out_features = 20, .in_features = 320, .bits = 4, .group_size = 320},
    {.label = "Int4G64ActOrder",
     .out_features = 40,
     .in_features = 256,
     .bits = 4,
     .group_size = 64,
     .has_g_idx = true},
    {.label = "Int4ScalesF32",
     .out_features = 24,
     .in_features = 128,
     .dtype = DType::F32,
     .bits = 4,
     .group_size = 64},
    {.label = "Int4ScalesBF16",
     .out_features = 24,
     .in_features = 128,
     .dtype = DType::BF16,
     .bits = 4,
     .group_size = 64},
    {.label = "Int4PartialFirstGroup",
     .out_features = 19,
     .in_features = 192,
     .bits = 4,
     .group_size = 128,
     .first_group_offset = 96},
    {.label = "Int4OddGroups", .out_features = 21, .in_features = 200, .bits = 4, .group_size = 40},
    {.label = "Int4OddFirstGroup",
     .out_features = 21,
     .in_features = 90,
     .bits = 4,
     .group_size = 64,
     .first_group_offset = 7,
     .has_bias = true},
    {.label = "Int2G64", .out_features = 35, .in_features = 192, .bits = 2, .group_size = 64},
    {.label = "Int2G16Sym", .out_features = 18, .in_features = 80, .bits = 2, .group_size = 16, .is_symmetric = true},
    {.label = "Int3G32", .out_features = 35, .in_features = 160, .bits = 3, .group_size = 32},
    {.label = "Int3G128ActOrder",
     .out_features = 16,
     .in_features = 384,
     .bits = 3,
     .group_size = 128,
     .has_g_idx = true},
    {.label = "Int8G128", .out_features = 31, .in_features = 384, .bits = 8, .group_size = 128},
    {.label = "Int8WholeRowSym",
     .out_features = 64,
     .in_features = 96,
     .bits = 8,
     .group_size = 96,
     .is_symmetric = true},
    {.label = "Fp8Tensor", .out_features = 70, .in_features = 576, .fp8 = weights::Fp8Granularity::PerTensor},
    {.label = "Fp8Channel",
     .out_features = 83,
     .in_features = 129,
     .has_bias = true,
     .fp8 = weights::Fp8Granularity::PerChannel},
    {.label = "Fp8Tiny", .out_features = 1, .in_features = 1, .fp8 = weights::Fp8Granularity::PerChannel},
    {.label = "Fp8Block",
     .out_features = 300,
     .in_features = 333,
     .has_bias = true,
     .fp8 = weights::Fp8Granularity::PerBlock},
    {.label = "Int8Odd", .out_features = 5, .in_features = 45, .bits = 8, .group_size = 15},
    {.label = "Codebook4", .out_features = 96, .in_features = 576, .bits = 4, .is_codebook = true},
    {.label = "Codebook4Tiny", .out_features = 1, .in_features = 1, .bits = 4, .is_codebook = true},
    {.label = "Codebook4Odd",
     .out_features = 37,
     .in_features = 203,
     .dtype = DType::F32,
     .bits = 4,
     .has_bias = true,
     .is_codebook = true,
     .sparsity = 0.05},
    {.label = "Codebook3", .out_features = 48, .in_features = 640, .bits = 3, .is_codebook = true, .sparsity = 0.0045},
    {.label = "Codebook3Odd",
     .out_features = 21,
     .in_features = 333,
     .bits = 3,
     .has_bias = true,
     .is_codebook = true,
     .sparsity = 0.1},
};

using LinearCase = std::tuple<BackendCase, WeightCase>;

class LinearOf : public testing::TestWithParam<LinearCase> {
 protected:
  const WeightCase& weight_case() const { return std::get<1>(GetParam()); }
  std::unique_ptr<Backend> backend_ = make(std::get<0>(GetParam()));
};

std::string case_name(const testing::TestParamInfo<LinearCase>& info) {
  return testing::PrintToString(std::get<0>(info.param)) + "_" + std::get<1>(info.param).label;
}

std::vector<weights::LinearPart> one_part(const weights::LinearPart& part) {
  std::vector<weights::LinearPart> parts;
  parts.push_back(copy_of(part));
  return parts;
}

// f32 rounding only: the expected values take the activations as the kernel gets them, int8 or not. A chain of n fused
// multiply-adds errs by at most n * 2^-24 of the magnitude; each product carries up to three roundings of its own
// (dequantized weight, scale product, bias).
double tolerance(double magnitude, std::int64_t in_features) {
  return static_cast<double>(in_features + 4) * std::ldexp(1.0, -24) * magnitude + 1e-30;
}

void expect_close(const std::vector<float>& y, const Expected& expected, std::int64_t in_features) {
  ASSERT_EQ(y.size(), expected.y.values.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    ASSERT_NEAR(y[i], expected.y.values[i], tolerance(expected.magnitude.values[i], in_features)) << "element " << i;
  }
}

TEST_P(LinearOf, EqualsFloat64ForEveryBatchSize) {
  const weights::LinearPart part = random_part(weight_case(), 7);
  const auto linear = backend_->make_linear(one_part(part), {.name = "test"});
  for (const std::int64_t num_tokens : {1, 2, 3, 4, 7, 8, 9, 16, 33, 130}) {
    const Activation input = make_input(*backend_, *linear, num_tokens, static_cast<std::uint32_t>(num_tokens));
    const Expected expected = expected_output(one_part(part), read_activation(input));
    SCOPED_TRACE(num_tokens);
    expect_close(run(*backend_, *linear, input), expected, weight_case().in_features);
  }
}

TEST_P(LinearOf, RowsDoNotDependOnTheirBatchNorOnThreads) {
  const weights::LinearPart part = random_part(weight_case(), 8);
  const auto linear = backend_->make_linear(one_part(part), {.name = "test"});
  const auto serial = make(std::get<0>(GetParam()), 1);
  const auto serial_linear = serial->make_linear(one_part(part), {.name = "test"});
  const Activation input = make_input(*backend_, *linear, 67, 3);
  const std::vector<float> batch = run(*backend_, *linear, input);
  EXPECT_EQ(batch, run(*serial, *serial_linear, input));
  for (const std::int64_t t : {0, 5, 8, 31, 66}) {
    const std::vector<float> alone = run(*backend_, *linear, take_row(*backend_, input, t));
    const auto begin = batch.begin() + t * linear->out_features();
    EXPECT_EQ(alone, std::vector<float>(begin, begin + linear->out_features())) << "row " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearOf,
                         testing::Combine(testing::ValuesIn(kBackendCases), testing::ValuesIn(kWeightCases)),
                         case_name);

class LinearOn : public testing::TestWithParam<BackendCase> {
 protected:
  void expect_fused_equals_float64(const std::vector<WeightCase>& cases) {
    std::vector<weights::LinearPart> parts;
    std::vector<weights::LinearPart> copies;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      parts.push_back(random_part(cases[i], static_cast<std::uint32_t>(20 + i)));
      copies.push_back(copy_of(parts.back()));
    }
    const auto linear = backend_->make_linear(std::move(copies), {.name = "test"});
    for (const std::int64_t num_tokens : {1, 3, 20}) {
      const Activation input = make_input(*backend_, *linear, num_tokens, 5);
      const std::vector<float> y = run(*backend_, *linear, input);
      const Expected expected = expected_output(parts, read_activation(input));
      for (std::size_t i = 0; i < y.size(); ++i) {
        // Parts that disagree convert the input themselves: up to half a step of 1/16256 of a group's largest value,
        // which is below 6 for these inputs, on weights that the magnitude sums with values of about 1.
        const bool converts = linear->input_format().kind == ActivationKind::F32 && GetParam().name == "cpu" &&
                              GetParam().precision == Precision::Fast;
        const double conversion = converts ? expected.magnitude.values[i] * 6 / (2 * 16256) : 0;
        ASSERT_NEAR(y[i], expected.y.values[i],
                    tolerance(expected.magnitude.values[i], cases[0].in_features) + conversion);
      }
    }
  }
  std::unique_ptr<Backend> backend_ = make(GetParam());
};

TEST_P(LinearOn, FusesPartsOfOneKind) {
  const WeightCase q{.label = "q", .out_features = 64, .in_features = 256, .bits = 4, .group_size = 64};
  WeightCase k = q;
  k.out_features = 20;
  k.has_bias = true;
  expect_fused_equals_float64({q, k, k});
}

TEST_P(LinearOn, FusesPartsOfOtherGroupSizes) {
  expect_fused_equals_float64({{.label = "a", .out_features = 33, .in_features = 256, .bits = 4, .group_size = 64},
                               {.label = "b", .out_features = 17, .in_features = 256, .bits = 8, .group_size = 32}});
}

TEST_P(LinearOn, KeepsPartsOfOtherKindsApart) {
  expect_fused_equals_float64(
      {{.label = "dense", .out_features = 33, .in_features = 256, .dtype = DType::F16},
       {.label = "int", .out_features = 17, .in_features = 256, .bits = 4, .group_size = 64},
       {.label = "order", .out_features = 18, .in_features = 256, .bits = 4, .group_size = 64, .has_g_idx = true}});
}

TEST_P(LinearOn, FusesCodebooksWithOtherKinds) {
  expect_fused_equals_float64(
      {{.label = "a", .out_features = 33, .in_features = 256, .bits = 4, .is_codebook = true, .sparsity = 0.01},
       {.label = "b", .out_features = 17, .in_features = 256, .bits = 3, .is_codebook = true},
       {.label = "c", .out_features = 18, .in_features = 256, .bits = 4, .group_size = 64}});
}

TEST_P(LinearOn, FusesFp8PartsAndOthers) {
  const auto fp8 = [](std::int64_t out, weights::Fp8Granularity granularity) {
    return WeightCase{.label = "fp8", .out_features = out, .in_features = 256, .fp8 = granularity};
  };
  expect_fused_equals_float64(
      {fp8(64, weights::Fp8Granularity::PerChannel), fp8(20, weights::Fp8Granularity::PerTensor)});
  expect_fused_equals_float64({fp8(40, weights::Fp8Granularity::PerBlock),
                               {.label = "dense", .out_features = 33, .in_features = 256, .dtype = DType::F16},
                               {.label = "int", .out_features = 17, .in_features = 256, .bits = 4, .group_size = 64}});
}

TEST_P(LinearOn, HoldsTheLmHeadAtHalfAPercent) {
  const WeightCase c{.label = "head", .out_features = 300, .in_features = 576, .dtype = DType::F16};
  const weights::LinearPart part = random_part(c, 9);
  const auto linear = backend_->make_linear(one_part(part), {.name = "lm_head", .is_lm_head = true});
  const Activation input = make_input(*backend_, *linear, 6, 4);
  const std::vector<float> y = run(*backend_, *linear, input);
  const Expected expected = expected_output(one_part(part), read_activation(input));
  double error = 0;
  double power = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += (y[i] - expected.y.values[i]) * (y[i] - expected.y.values[i]);
    power += expected.y.values[i] * expected.y.values[i];
  }
  // 8 bits over a group's range of about ±3 deviations: an error of 3/127/sqrt(12) = 0.7 % of a weight, uncorrelated.
  EXPECT_LT(std::sqrt(error / power), 0.01);
}

TEST_P(LinearOn, PacksIntegerWeightsOnce) {
  if (GetParam().name == "reference") return;  // dequantizes
  const WeightCase c{.label = "int", .out_features = 1024, .in_features = 2048, .bits = 4, .group_size = 128};
  const auto linear = backend_->make_linear(one_part(random_part(c, 9)), {.name = "test"});
  // 4 bits, and per group an f16 scale and a byte of zero.
  EXPECT_EQ(linear->size_bytes(), 1024 * (2048 / 2 + 2048 / 128 * 3));
}

TEST_P(LinearOn, PacksCodebooksOnce) {
  if (GetParam().name == "reference") return;  // dequantizes
  const WeightCase c{.label = "codebook", .out_features = 1024, .in_features = 2560, .bits = 4, .is_codebook = true};
  WeightCase three = c;
  three.bits = 3;
  // Codes of 4 bits, ten 3-bit codes in 32, and an f16 table of 16 entries a row.
  EXPECT_EQ(backend_->make_linear(one_part(random_part(c, 9)), {.name = "test"})->size_bytes(), 1024 * (2560 / 2 + 32));
  EXPECT_EQ(backend_->make_linear(one_part(random_part(three, 9)), {.name = "test"})->size_bytes(),
            1024 * (2560 * 4 / 10 + 32));
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearOn, testing::ValuesIn(kBackendCases),
                         [](const auto& named) { return testing::PrintToString(named.param); });

}  // namespace
}  // namespace nibble::backend::test
