// Every method × bits × group size × act-order × symmetry × format: what is written reads back as the same numbers, and
// what a format cannot hold is refused. Which cell is proven where:
//
//   cell                                              written, read back   peers read ours     we read theirs
//   integers × 2, 3, 4, 8 bits × groups × sym, asym   here                 test_formats.py     test_formats.py
//   … act-order                                       here                 test_formats.py     test_formats.py
//   … as autoawq (4 bits)                             here                 test_formats.py     test_formats.py
//   … as compressed-tensors                           here                 test_compressed_tensors.py, both
//   guided, AWQ, GPTQ-rounded AWQ, by `quantize`      here                 test_format_matrix.py
//   FP8 × tensor, channel, block × dynamic, static    here                 test_fp8.py         test_fp8.py
//   … as compressed-tensors                           here                 test_fp8.py test_compressed_tensors.py
//   codebooks × 3, 4 bits × dense, sparse             here                 test_squeezellm.py  test_squeezellm.py
//   … LNQ, by `quantize`                              here                 test_format_matrix.py
//   random weights, odd shapes                        tests/property
//
// The Python files lie in tests/oracle; peers are GPTQModel, AutoAWQ, compressed-tensors and transformers, and numpy
// for codebooks.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/temporary_folder.h"
#include "formats/checkpoint.h"
#include "formats/quantization_config.h"
#include "quantize/quantizer.h"
#include "random_layer.h"

namespace nibble::quantize {
namespace {

using weights::CodebookWeights;
using weights::Fp8Weights;
using weights::GroupedIntWeights;
using weights::LinearWeights;

constexpr const char* kModule = "model.layers.0.mlp.up_proj";
constexpr std::int64_t kOut = 64;
constexpr std::int64_t kIn = 128;

bool same_tensor(const Tensor& a, const Tensor& b) {
  if (a.is_empty() || b.is_empty()) return a.is_empty() && b.is_empty();
  return a.dtype() == b.dtype() && a.shape() == b.shape() && same_bytes(a, b);
}

void expect_same(const GroupedIntWeights& a, const GroupedIntWeights& b) {
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.group_size, b.group_size);
  EXPECT_TRUE(same_tensor(a.codes, b.codes)) << "codes";
  EXPECT_TRUE(same_tensor(to_dtype(a.scales, DType::F32), to_dtype(b.scales, DType::F32))) << "scales";
  EXPECT_TRUE(same_tensor(a.zeros, b.zeros)) << "zeros";
  EXPECT_TRUE(same_tensor(a.g_idx, b.g_idx)) << "g_idx";
}

void expect_same(const Fp8Weights& a, const Fp8Weights& b) {
  EXPECT_EQ(a.block_size, b.block_size);
  EXPECT_EQ(a.input_scale, b.input_scale);
  EXPECT_TRUE(same_tensor(a.weight, b.weight)) << "codes";
  EXPECT_TRUE(same_bytes(a.scale, b.scale)) << "scales";
}

void expect_same(const CodebookWeights& a, const CodebookWeights& b) {
  EXPECT_TRUE(same_tensor(a.codes, b.codes)) << "codes";
  EXPECT_TRUE(same_tensor(a.lookup_table, b.lookup_table)) << "lookup_table";
  EXPECT_TRUE(same_tensor(a.rows, b.rows) && same_tensor(a.cols, b.cols) && same_tensor(a.vals, b.vals)) << "outliers";
}

class FormatMatrix : public ::testing::Test {
 protected:
  FormatMatrix() : weight_(random_matrix(kOut, kIn, 1, 0.02f)) {
    const Tensor values = correlated_inputs(300, kIn, 2);
    inputs_.gram = gram_of(values, pool_);
    inputs_.mean_magnitude = Tensor::empty(DType::F32, {kIn});
    for (float& magnitude : inputs_.mean_magnitude.span<float>()) magnitude = 0.5f;
    inputs_.num_tokens = 300;
    inputs_.range = 8;
    fisher_ = random_matrix(kOut, kIn, 3);
    for (float& value : fisher_.span<float>()) value *= value;
  }

  LinearWeights quantize(const Method& method, const MethodOptions& options) {
    method.check_options(options);
    std::vector<FloatLinear> linears;
    linears.push_back({kModule, Tensor::copy_of(weight_), {}});
    const auto quantizer = method.make(options);
    if (method.calibration(options) != Calibration::Loss) {
      return std::move(quantizer->quantize(linears, inputs_, pool_).front());
    }
    StageLossStatistics statistics;
    statistics.num_tokens = inputs_.num_tokens;
    statistics.linears.push_back({Tensor::copy_of(fisher_), Tensor::copy_of(inputs_.gram)});
    return std::move(quantizer->quantize_by_loss(linears, statistics, pool_).front());
  }

  /// Writes the linear with the config that its scheme makes, reads it, and compares.
  void round_trip(const LinearWeights& linear, const std::string& format, const MethodOptions& options) {
    SCOPED_TRACE(fmt::format("{} as {}", weights::describe(linear), format));
    const TemporaryFolder folder;
    formats::CheckpointWriter writer(folder / "m");
    writer.add_linear(kModule, linear, format);
    formats::QuantizationConfig config;
    config.bits = options.grid.bits;
    config.group_size = options.group_size;
    config.sym = options.grid.symmetry == Symmetry::Symmetric;
    config.desc_act = options.group_index == GroupIndex::DescAct && options.group_size != -1;
    config.modules = {formats::scheme_of(kModule, linear, options.group_size)};
    writer.finish({Json{{"quantization_config", formats::make_quantization_config(format, config)}}, {}});
    const auto checkpoint = formats::Checkpoint::open(folder / "m");  // FP8 codes borrow from it
    const LinearWeights read = checkpoint->linear(kModule, {kOut, kIn});
    ASSERT_EQ(read.index(), linear.index());
    if (const auto* grouped = std::get_if<GroupedIntWeights>(&linear)) {
      expect_same(*grouped, std::get<GroupedIntWeights>(read));
    } else if (const auto* fp8 = std::get_if<Fp8Weights>(&linear)) {
      expect_same(*fp8, std::get<Fp8Weights>(read));
    } else {
      expect_same(std::get<CodebookWeights>(linear), std::get<CodebookWeights>(read));
    }
    ++num_round_trips_;
  }

  void refuse(const LinearWeights& linear, const std::string& format) {
    SCOPED_TRACE(fmt::format("{} as {}", weights::describe(linear), format));
    const TemporaryFolder folder;
    formats::CheckpointWriter writer(folder / "m");
    EXPECT_THROW(writer.add_linear(kModule, linear, format), Error);
    ++num_refusals_;
  }

  void round_trip_integers(const Method& method, const MethodOptions& options) {
    const LinearWeights linear = quantize(method, options);
    const auto& grouped = std::get<GroupedIntWeights>(linear);
    const auto zeros = grouped.zeros.span<std::int16_t>();
    const bool has_zero_point_0 = std::ranges::find(zeros, 0) != zeros.end();
    const bool has_order = grouped.has_g_idx();
    EXPECT_EQ(has_order, options.group_index == GroupIndex::DescAct);
    const std::vector<std::pair<std::string, bool>> formats = {{"gptq", !has_zero_point_0},
                                                               {"gptq_v2", true},
                                                               {"compressed-tensors", !has_order},
                                                               {"awq", !has_order && options.grid.bits == 4}};
    for (const auto& [format, holds_it] : formats) {
      holds_it ? round_trip(linear, format, options) : refuse(linear, format);
    }
  }

  ThreadPool pool_{1};
  Tensor weight_;
  StageInputs inputs_;
  Tensor fisher_;
  int num_round_trips_ = 0;
  int num_refusals_ = 0;
};

/// A way to make integers.
struct IntegerWay {
  const char* method;
  Rounding rounding = Rounding::Nearest;
  Guidance guidance = Guidance::Inputs;
  GroupIndex order = GroupIndex::Trivial;
};

class IntegerMatrix : public FormatMatrix, public ::testing::WithParamInterface<IntegerWay> {};

TEST_P(IntegerMatrix, ComesBackFromEveryFormatThatHoldsIt) {
  const IntegerWay& way = GetParam();
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    for (const std::int64_t group_size : {32, 64, -1}) {
      for (const Symmetry symmetry : {Symmetry::Symmetric, Symmetry::Asymmetric}) {
        if (way.order == GroupIndex::DescAct && group_size == -1) continue;  // one group has no order
        MethodOptions options;
        options.grid = {bits, symmetry};
        options.group_size = group_size;
        options.group_index = way.order;
        options.rounding = way.rounding;
        options.guidance = way.guidance;
        round_trip_integers(find_method(way.method), options);
      }
    }
  }
  EXPECT_GT(num_round_trips_, way.order == GroupIndex::DescAct ? 20 : 50);
  EXPECT_GT(num_refusals_, 0);
}

INSTANTIATE_TEST_SUITE_P(Ways, IntegerMatrix,
                         ::testing::Values(IntegerWay{.method = "rtn"}, IntegerWay{.method = "awq"},
                                           IntegerWay{.method = "awq", .rounding = Rounding::Gptq},
                                           IntegerWay{.method = "gptq"},
                                           IntegerWay{.method = "gptq", .order = GroupIndex::DescAct},
                                           IntegerWay{.method = "gptq", .guidance = Guidance::EndLoss}),
                         [](const auto& param) {
                           const IntegerWay& way = param.param;
                           return std::string(way.method) + (way.rounding == Rounding::Gptq ? "WithGptqRounding" : "") +
                                  (way.guidance == Guidance::EndLoss ? "Guided" : "") +
                                  (way.order == GroupIndex::DescAct ? "InDescendingOrder" : "");
                         });

TEST_F(FormatMatrix, FloatsComeBackFromBothForms) {
  const Method& method = find_method("fp8");
  for (const auto granularity :
       {weights::Fp8Granularity::PerTensor, weights::Fp8Granularity::PerChannel, weights::Fp8Granularity::PerBlock}) {
    for (const auto activations : {ActivationScheme::Dynamic, ActivationScheme::Static}) {
      if (granularity == weights::Fp8Granularity::PerBlock && activations == ActivationScheme::Static) continue;
      MethodOptions options;
      options.fp8.granularity = granularity;
      options.fp8.activations = activations;
      const LinearWeights linear = quantize(method, options);
      for (const char* format : {"fp8", "compressed-tensors"}) round_trip(linear, format, options);
    }
  }
}

TEST_F(FormatMatrix, CodebooksComeBack) {
  for (const std::int32_t bits : {3, 4}) {
    for (const double sparsity : {0.0, 0.0045}) {
      for (const auto& [sensitivity, guidance] :
           {std::pair(Sensitivity::Hessian, Guidance::Inputs), std::pair(Sensitivity::Fisher, Guidance::Inputs),
            std::pair(Sensitivity::Fisher, Guidance::EndLoss)}) {
        MethodOptions options;
        options.grid.bits = bits;
        options.guidance = guidance;
        options.squeezellm = {.sensitivity = sensitivity, .sparsity = sparsity};
        const LinearWeights linear = quantize(find_method("squeezellm"), options);
        EXPECT_EQ(std::get<CodebookWeights>(linear).rows.is_empty(), sparsity == 0);
        round_trip(linear, "squeezellm", options);
        for (const char* format : {"gptq", "awq", "compressed-tensors", "fp8"}) refuse(linear, format);
      }
    }
  }
  EXPECT_EQ(num_round_trips_, 12);
}

}  // namespace
}  // namespace nibble::quantize
