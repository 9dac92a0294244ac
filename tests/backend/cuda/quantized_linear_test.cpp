#include "../linear_cases.h"

#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "core/error.h"
#include "gpu.h"

namespace nibble::backend::test {
namespace {

WeightCase ints(std::string label, std::int64_t out, std::int64_t in, std::int32_t bits, std::int64_t group_size) {
  return {.label = std::move(label), .out_features = out, .in_features = in, .bits = bits, .group_size = group_size};
}

WeightCase with_g_idx(WeightCase c) {
  c.has_g_idx = true;
  return c;
}

WeightCase with_offset(WeightCase c, std::int64_t offset) {
  c.first_group_offset = offset;
  return c;
}

WeightCase fp8(std::string label, std::int64_t out, std::int64_t in, weights::Fp8Granularity granularity) {
  return {.label = std::move(label), .out_features = out, .in_features = in, .fp8 = granularity};
}

WeightCase codebook(std::string label, std::int64_t out, std::int64_t in, std::int32_t bits, double sparsity) {
  return {.label = std::move(label),
          .out_features = out,
          .in_features = in,
          .bits = bits,
          .is_codebook = true,
          .sparsity = sparsity};
}

std::vector<std::vector<WeightCase>> fused_cases() {
  std::vector<std::vector<WeightCase>> cases;
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    const std::string label = std::to_string(bits) + "bit";
    cases.push_back({ints(label + "g64", 192, 576, bits, 64)});
    cases.push_back({ints(label + "g128", 77, 1024, bits, 128)});
    cases.push_back({ints(label + "OneGroup", 33, 100, bits, 100)});
    cases.push_back({ints(label + "g16", 40, 160, bits, 16)});
    cases.push_back({with_g_idx(ints(label + "ActOrder", 64, 576, bits, 64))});
    cases.push_back({with_offset(ints(label + "Slice", 64, 320, bits, 128), 96)});
    cases.push_back({ints(label + "Q", 96, 576, bits, 64), ints(label + "K", 32, 576, bits, 64)});
  }
  for (const std::int32_t bits : {3, 4}) {
    const std::string label = "codebook" + std::to_string(bits);
    cases.push_back({codebook(label, 192, 576, bits, 0)});
    cases.push_back({codebook(label + "Odd", 77, 100, bits, 0)});
    cases.push_back({codebook(label + "Sparse", 77, 1152, bits, 0.01)});
    cases.push_back({codebook(label + "Q", 96, 576, bits, 0.0045), codebook(label + "K", 33, 576, bits, 0)});
  }
  cases.push_back({fp8("PerTensor", 96, 576, weights::Fp8Granularity::PerTensor)});
  cases.push_back({fp8("PerChannel", 96, 100, weights::Fp8Granularity::PerChannel)});
  cases.push_back({fp8("PerBlock", 300, 576, weights::Fp8Granularity::PerBlock)});
  WeightCase dense{.label = "Dense", .out_features = 40, .in_features = 576, .has_bias = true};
  cases.push_back({fp8("PerBlockOdd", 77, 200, weights::Fp8Granularity::PerBlock)});
  cases.push_back({{.label = "DenseLarge", .out_features = 300, .in_features = 1000}});
  cases.push_back({{.label = "DenseOdd", .out_features = 33, .in_features = 101}});
  cases.push_back({ints("Mixed4", 96, 576, 4, 64), dense, ints("Mixed8", 32, 576, 8, 64),
                   fp8("MixedFp8", 32, 576, weights::Fp8Granularity::PerChannel)});
  WeightCase wide = ints("BF16Scales", 64, 256, 4, 64);
  wide.dtype = DType::BF16;
  cases.push_back({wide});
  wide.dtype = DType::F32;
  cases.push_back({wide, wide});
  return cases;
}

class CudaLinear : public testing::TestWithParam<Precision> {};

TEST_P(CudaLinear, MultipliesQuantizedPartsWithinRounding) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const auto backend =
      cuda::make_cuda_backend({.precision = GetParam(), .fp8_activations = Fp8Activations::Float, .num_threads = 2});
  // Of the sum of magnitudes: f32 sums alone; or y, and beyond eight tokens the weights, rounded to f16.
  const double tolerance = GetParam() == Precision::Exact ? 2e-6 : 7e-4;
  for (const std::vector<WeightCase>& fused : fused_cases()) {
    std::vector<weights::LinearPart> parts, copies;
    for (std::size_t i = 0; i < fused.size(); ++i) {
      parts.push_back(random_part(fused[i], static_cast<std::uint32_t>(7 + i)));
      copies.push_back(copy_of(parts.back()));
    }
    const auto linear = backend->make_linear(std::move(copies), {.name = fused.front().label});
    for (const std::int64_t num_tokens : {1, 2, 3, 8, 9, 16, 17, 70, 130, 300}) {
      SCOPED_TRACE(testing::Message() << fused.front().label << ", tokens " << num_tokens);
      Matrix64 inputs{linear->in_features(), {}};
      std::vector<float> values = random_values(num_tokens * linear->in_features(), 99);
      for (float& value : values) {
        value = to_float(to_half(value));
        inputs.values.push_back(value);
      }
      Activation x = backend->make_activation(num_tokens, linear->in_features(), linear->input_format());
      backend->write({values.data(), num_tokens, linear->in_features(), linear->in_features()}, x);
      Activation y = backend->make_activation(num_tokens, linear->out_features(), backend->hidden_format());
      linear->forward(x, y);
      Tensor actual = Tensor::empty(DType::F32, {num_tokens, linear->out_features()});
      backend->read(y, actual.matrix<float>());
      const Expected expected = expected_output(parts, inputs);
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        for (std::int64_t o = 0; o < linear->out_features(); ++o) {
          ASSERT_NEAR(actual.matrix<float>().row(t)[o], expected.y.at(t, o),
                      tolerance * expected.magnitude.at(t, o) + 1e-6)
              << "token " << t << " output " << o;
        }
      }
      linear->forward(x, y);
      Tensor again = Tensor::empty(DType::F32, {num_tokens, linear->out_features()});
      backend->read(y, again.matrix<float>());
      EXPECT_TRUE(std::ranges::equal(again.span<float>(), actual.span<float>())) << "differs from run to run";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, CudaLinear, testing::Values(Precision::Fast, Precision::Exact),
                         [](const auto& named) { return named.param == Precision::Fast ? "Fast" : "Exact"; });

}  // namespace
}  // namespace nibble::backend::test
