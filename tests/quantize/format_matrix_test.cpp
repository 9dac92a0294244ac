// Every method × bits × group size × act-order × symmetry × format: what is written reads back as the same numbers.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
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
  }

  LinearWeights quantize(const Method& method, const MethodOptions& options) {
    std::vector<FloatLinear> linears;
    linears.push_back({kModule, Tensor::copy_of(weight_), {}});
    return std::move(method.make(options)->quantize(linears, inputs_, pool_).front());
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

  void round_trip_integers(const Method& method, const MethodOptions& options) {
    const LinearWeights linear = quantize(method, options);
    const bool is_symmetric = options.grid.symmetry == Symmetry::Symmetric;
    const bool has_order = std::get<GroupedIntWeights>(linear).has_g_idx();
    if (is_symmetric) round_trip(linear, "gptq", options);
    round_trip(linear, "gptq_v2", options);
    if (!has_order) round_trip(linear, "compressed-tensors", options);
    if (!has_order && options.grid.bits == 4) round_trip(linear, "awq", options);
  }

  ThreadPool pool_{1};
  Tensor weight_;
  StageInputs inputs_;
  int num_round_trips_ = 0;
};

TEST_F(FormatMatrix, IntegersComeBackFromEveryFormatThatHoldsThem) {
  for (const Method& method : methods()) {
    if (method.makes != Makes::GroupedInt) continue;
    for (const std::int32_t bits : {2, 3, 4, 8}) {
      for (const std::int64_t group_size : {32, 64, -1}) {
        for (const Symmetry symmetry : {Symmetry::Symmetric, Symmetry::Asymmetric}) {
          for (const GroupIndex order : {GroupIndex::Trivial, GroupIndex::DescAct}) {
            const bool has_effect = method.name == "gptq" && group_size != -1;
            if (order == GroupIndex::DescAct && !has_effect) continue;
            MethodOptions options;
            options.grid = {bits, symmetry};
            options.group_size = group_size;
            options.group_index = order;
            SCOPED_TRACE(method.name);
            round_trip_integers(method, options);
          }
        }
      }
    }
  }
  EXPECT_GT(num_round_trips_, 200);
}

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
      MethodOptions options;
      options.grid.bits = bits;
      options.squeezellm = {.sensitivity = Sensitivity::Hessian, .sparsity = sparsity};
      round_trip(quantize(find_method("squeezellm"), options), "squeezellm", options);
    }
  }
}

}  // namespace
}  // namespace nibble::quantize
