#include <cmath>

#include "../linear_cases.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/fp8_rows.h"
#include "backend/cuda/handles.h"
#include "core/error.h"
#include "core/fp8_e4m3.h"
#include "gpu.h"

namespace nibble::backend::test {
namespace {

using weights::Fp8Granularity;

/// vLLM's scale of a run: its largest magnitude becomes 448.
float scale_of_run(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return std::max(largest / 448, 1.0f / (448 * 512));
}

/// Inputs that share a scale; 0: the whole row.
std::int64_t run_length(const ActivationFormat& format) {
  return format.kind == ActivationKind::Fp8Per128 ? 128 : 0;
}

/// What one row becomes, by the definitions in core/fp8_e4m3.h: calls take(first, code, scale).
template <class Take>
void round_row(std::span<const float> row, const ActivationFormat& format, Take take) {
  const auto length = run_length(format) == 0 ? row.size() : static_cast<std::size_t>(run_length(format));
  for (std::size_t first = 0; first < row.size(); first += length) {
    const auto run = row.subspan(first, std::min(length, row.size() - first));
    const float scale = format.kind == ActivationKind::Fp8Static ? format.static_scale : scale_of_run(run);
    for (std::size_t j = 0; j < run.size(); ++j) take(first + j, to_fp8_e4m3(run[j] / scale), scale);
  }
}

constexpr std::int64_t kOutlierToken = 2;

/// Normal values that f16 holds, a token of zeros, one with an outlier and one of tiny values.
std::vector<float> make_inputs(std::int64_t num_tokens, std::int64_t width) {
  std::vector<float> values = random_values(num_tokens * width, 99);
  const auto row = [&](std::int64_t t) { return values.begin() + t * width; };
  if (num_tokens > 4) {
    std::fill_n(row(1), width, 0.0f);
    *(row(kOutlierToken) + width / 2) = 900;
    std::transform(row(3), row(4), row(3), [](float value) { return value * 1e-5f; });
  }
  for (float& value : values) value = to_float(to_half(value));
  return values;
}

struct RowsCase {
  ActivationKind input;
  ActivationFormat format;
  std::int64_t width;
  std::int64_t row_bytes;
};

TEST(CudaFp8Rows, EqualTheHostsCodesBitForBit) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const auto stream = cuda::make_stream();
  constexpr std::int64_t kTokens = 7;
  constexpr std::int64_t kWritten = 8;
  std::vector<RowsCase> cases;
  for (const ActivationKind input : {ActivationKind::F16, ActivationKind::F32}) {
    for (const ActivationFormat& format : {ActivationFormat{.kind = ActivationKind::Fp8PerToken},
                                           ActivationFormat{.kind = ActivationKind::Fp8Static, .static_scale = 0.013f},
                                           ActivationFormat{.kind = ActivationKind::Fp8Per128}}) {
      for (const auto& [width, row_bytes] :
           {std::pair<std::int64_t, std::int64_t>{100, 128}, {577, 608}, {4096, 4096}, {8192, 8192}, {40000, 40000}}) {
        cases.push_back({input, format, width, row_bytes});
      }
    }
  }
  for (const RowsCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "width " << c.width << " format " << static_cast<int>(c.format.kind));
    const std::vector<float> values = make_inputs(kTokens, c.width);
    const TensorView host(values.data(), DType::F32, {kTokens, c.width});
    Activation x;
    x.format.kind = c.input;
    x.values = cuda::to_device(to_dtype(host, c.input == ActivationKind::F16 ? DType::F16 : DType::F32), stream.get());
    x.num_tokens = kTokens;
    const std::int64_t groups = run_length(c.format) == 0 ? 1 : (c.width + 127) / 128;
    const Tensor filled = Tensor::zeros(DType::U8, {kWritten, c.row_bytes});
    Tensor codes = cuda::to_device(filled, stream.get());
    cuda::check(cudaMemset(codes.mutable_view().data(), 0x55, codes.size_bytes()));
    Tensor scales = cuda::to_device(Tensor::zeros(DType::F32, {groups, kWritten}), stream.get());
    cuda::quantize_fp8_rows(x, 0, kTokens, kWritten, c.format,
                            {.codes = codes.mutable_view().data(),
                             .row_bytes = c.row_bytes,
                             .scales = static_cast<float*>(scales.mutable_view().data()),
                             .scale_stride = kWritten},
                            stream.get());
    const Tensor got = cuda::to_host(codes, stream.get());
    const Tensor got_scales = cuda::to_host(scales, stream.get());
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const auto row = std::span<const float>(values).subspan(static_cast<std::size_t>(t * c.width),
                                                              static_cast<std::size_t>(c.width));
      round_row(row, c.format, [&](std::size_t j, Fp8E4M3 code, float scale) {
        const auto group = run_length(c.format) == 0 ? 0 : static_cast<std::int64_t>(j) / 128;
        ASSERT_EQ(got_scales.matrix<float>().row(group)[t], scale) << "token " << t << " input " << j;
        ASSERT_EQ(got.matrix<std::uint8_t>().row(t)[j], code.bits) << "token " << t << " input " << j;
      });
    }
    for (std::int64_t t = 0; t < kWritten; ++t) {
      for (std::int64_t j = t < kTokens ? c.width : 0; j < c.row_bytes; ++j) {
        ASSERT_EQ(got.matrix<std::uint8_t>().row(t)[j], 0) << "row " << t << " byte " << j << " is padding";
      }
    }
  }
}

WeightCase fp8(std::string label, std::int64_t out, std::int64_t in, Fp8Granularity granularity) {
  return {.label = std::move(label), .out_features = out, .in_features = in, .fp8 = granularity};
}

WeightCase with_bias(WeightCase c) {
  c.has_bias = true;
  return c;
}

struct FusedCase {
  std::vector<WeightCase> parts;
  std::vector<float> input_scales;  // of each part; 0: dynamic
  ActivationFormat rounding;        // that all FP8 parts must have
};

std::vector<FusedCase> fused_cases() {
  const ActivationFormat per_token{.kind = ActivationKind::Fp8PerToken};
  const ActivationFormat per_128{.kind = ActivationKind::Fp8Per128};
  const auto fixed = [](float scale) {
    return ActivationFormat{.kind = ActivationKind::Fp8Static, .static_scale = scale};
  };
  using enum Fp8Granularity;
  return {
      {{fp8("TensorDynamic", 96, 576, PerTensor)}, {0}, per_token},
      {{fp8("TensorStatic", 96, 576, PerTensor)}, {0.01f}, fixed(0.01f)},
      {{fp8("Channel", 256, 1024, PerChannel)}, {0}, per_token},
      {{fp8("ChannelStatic", 96, 576, PerChannel)}, {0.01f}, fixed(0.01f)},
      {{fp8("OddWidths", 77, 100, PerChannel)}, {0}, per_token},
      {{fp8("OddStatic", 33, 577, PerTensor)}, {0.02f}, fixed(0.02f)},
      {{fp8("Blocks", 384, 1024, PerBlock)}, {0}, per_128},
      {{fp8("OddBlocks", 300, 576, PerBlock)}, {0}, per_128},
      {{with_bias(fp8("Q", 96, 576, PerTensor)), fp8("K", 32, 576, PerTensor), fp8("V", 32, 576, PerTensor)},
       {0.01f, 0.016f, 0.005f},
       fixed(0.016f)},
      {{fp8("BlocksQ", 256, 640, PerBlock), with_bias(fp8("BlocksK", 100, 640, PerBlock))}, {0, 0}, per_128},
      {{fp8("MixedChannel", 40, 576, PerChannel), fp8("MixedTensor", 24, 576, PerTensor)}, {0, 0}, per_token},
  };
}

struct Mode {
  Precision precision;
  Fp8Activations activations;
};

class CudaFp8Linear : public testing::TestWithParam<Mode> {};

TEST_P(CudaFp8Linear, MultipliesInputsRoundedAsTheDefinitionSays) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const Mode mode = GetParam();
  const auto backend =
      cuda::make_cuda_backend({.precision = mode.precision, .fp8_activations = mode.activations, .num_threads = 2});
  const bool is_exact = mode.precision == Precision::Exact;
  // Tensor cores add 32 products at once and keep of each what lies above 2^-14 of the largest: 31 * 2^-14 of it are
  // lost at most, where it outweighs the others; of like products much less, 2^-13 to 2^-16 of the sum of magnitudes
  // were measured. Then y is rounded to f16, twice with a bias.
  const auto sum_tolerance = [](bool has_outlier) { return std::ldexp(1, has_outlier ? -9 : -12); };
  const double rounding = is_exact ? std::ldexp(1, -22) : std::ldexp(1, -10);
  for (const FusedCase& fused : fused_cases()) {
    std::vector<weights::LinearPart> parts, copies;
    for (std::size_t i = 0; i < fused.parts.size(); ++i) {
      parts.push_back(random_part(fused.parts[i], static_cast<std::uint32_t>(7 + i)));
      std::get<weights::Fp8Weights>(parts.back().weights).input_scale = fused.input_scales[i];
      copies.push_back(copy_of(parts.back()));
    }
    const auto linear = backend->make_linear(std::move(copies), {.name = fused.parts.front().label});
    const std::int64_t width = linear->in_features();
    std::vector<std::int64_t> counts = {300, 273};
    if (mode.activations == Fp8Activations::Rounded) counts.insert(counts.end(), {1, 3, 64, 65, 130});
    for (const std::int64_t num_tokens : counts) {
      SCOPED_TRACE(testing::Message() << fused.parts.front().label << ", tokens " << num_tokens);
      std::vector<float> values = make_inputs(num_tokens, width);
      Matrix64 inputs{width, std::vector<double>(values.size())};
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        const std::span<const float> row(&values[static_cast<std::size_t>(t * width)], static_cast<std::size_t>(width));
        round_row(row, fused.rounding, [&](std::size_t j, Fp8E4M3 code, float scale) {
          inputs.at(t, static_cast<std::int64_t>(j)) = static_cast<double>(to_float(code)) * scale;
        });
      }
      Activation x = backend->make_activation(num_tokens, width, linear->input_format());
      backend->write({values.data(), num_tokens, width, width}, x);
      Activation y = backend->make_activation(num_tokens, linear->out_features(), backend->hidden_format());
      const auto run = [&] {
        linear->forward(x, y);
        Tensor result = Tensor::empty(DType::F32, {num_tokens, linear->out_features()});
        backend->read(y, result.matrix<float>());
        return result;
      };
      const Tensor actual = run();
      const Expected expected = expected_output(parts, inputs);
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        for (std::int64_t o = 0; o < linear->out_features(); ++o) {
          const double tolerance = sum_tolerance(t == kOutlierToken) * expected.magnitude.at(t, o) +
                                   rounding * std::abs(expected.y.at(t, o)) + 1e-6;
          ASSERT_NEAR(actual.matrix<float>().row(t)[o], expected.y.at(t, o), tolerance)
              << "token " << t << " output " << o;
        }
      }
      const Tensor again = run();
      EXPECT_TRUE(std::ranges::equal(again.span<float>(), actual.span<float>())) << "differs from run to run";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, CudaFp8Linear,
                         testing::Values(Mode{Precision::Fast, Fp8Activations::Auto},
                                         Mode{Precision::Fast, Fp8Activations::Rounded},
                                         Mode{Precision::Exact, Fp8Activations::Rounded}),
                         [](const auto& named) {
                           return std::string(named.param.precision == Precision::Fast ? "Fast" : "Exact") +
                                  (named.param.activations == Fp8Activations::Auto ? "Auto" : "Rounded");
                         });

}  // namespace
}  // namespace nibble::backend::test
