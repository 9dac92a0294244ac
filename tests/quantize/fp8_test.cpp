#include "weights/fp8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "core/file.h"
#include "quantize/pipeline.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

using weights::Fp8Granularity;
using weights::Fp8Weights;

class Fp8Test : public ::testing::Test {
 protected:
  Fp8Test() {
    write_tiny_model(folder_ / "model");
    write_text_file(folder_ / "text.txt", varied_text(3000));
  }

  PipelineOptions options(const std::string& output, const Fp8Options& fp8 = {}) const {
    PipelineOptions options;
    options.model = folder_ / "model";
    options.output = folder_ / output;
    options.method = "fp8";
    options.method_options.fp8 = fp8;
    options.calibration = {.sources = {(folder_ / "text.txt").string()}, .num_samples = 16, .seq_len = 64, .seed = 3};
    options.device = "reference";
    return options;
  }
  std::unique_ptr<formats::Checkpoint> open(const std::string& output) const {
    return formats::Checkpoint::open(folder_ / output);
  }
  static Fp8Weights linear(const formats::Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
    return std::get<Fp8Weights>(checkpoint.linear("model.layers.1." + name, shape));
  }

  TemporaryFolder folder_;
};

TEST_F(Fp8Test, EveryStrategyWritesACheckpointThatReadsBack) {
  for (const auto granularity : {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel, Fp8Granularity::PerBlock}) {
    const std::string output = "out" + std::to_string(static_cast<int>(granularity));
    const bool is_channel = granularity == Fp8Granularity::PerChannel;
    EXPECT_EQ(run_pipeline(options(output, {.granularity = granularity})).checkpoint_format,
              is_channel ? "compressed-tensors" : "fp8");
    const auto checkpoint = open(output);
    EXPECT_EQ(checkpoint->quantization()->modules_to_not_convert.front(), "lm_head");
    const Fp8Weights w = linear(*checkpoint, "mlp.down_proj", {64, 96});
    EXPECT_EQ(w.scale.num_elements(), granularity == Fp8Granularity::PerChannel ? 64 : 1);
    EXPECT_EQ(w.input_scale, 0);
    EXPECT_EQ(checkpoint->tensor("model.embed_tokens.weight").dtype(), DType::F16);
  }
}

TEST_F(Fp8Test, FusedLinearsShareOneScalePerTensor) {
  run_pipeline(options("out", {.granularity = Fp8Granularity::PerTensor}));
  const auto checkpoint = open("out");
  const auto scale = [&](const char* name) {
    return to_dtype(checkpoint->tensor("model.layers.1." + std::string(name) + ".weight_scale"), DType::F32)
        .span<float>()[0];
  };
  EXPECT_EQ(scale("self_attn.q_proj"), scale("self_attn.k_proj"));
  EXPECT_EQ(scale("self_attn.q_proj"), scale("self_attn.v_proj"));
  EXPECT_EQ(scale("mlp.gate_proj"), scale("mlp.up_proj"));
  EXPECT_NE(scale("self_attn.q_proj"), scale("self_attn.o_proj"));
}

TEST_F(Fp8Test, StaticScalesComeFromTheInputsAndShrinkWithThePercentile) {
  run_pipeline(options("max", {.granularity = Fp8Granularity::PerTensor, .activations = ActivationScheme::Static}));
  run_pipeline(options(
      "half", {.granularity = Fp8Granularity::PerTensor, .activations = ActivationScheme::Static, .percentile = 50}));
  const auto largest = open("max");
  const auto half = open("half");
  EXPECT_EQ(largest->quantization()->raw["activation_scheme"], "static");
  for (const char* name : {"self_attn.q_proj", "mlp.gate_proj"}) {
    const Shape shape = std::string(name) == "mlp.gate_proj" ? Shape{96, 64} : Shape{64, 64};
    const float of_largest = linear(*largest, name, shape).input_scale;
    EXPECT_GT(of_largest, 0);
    EXPECT_LT(linear(*half, name, shape).input_scale, 0.7f * of_largest);
  }
  // A norm's output has mean square 1, so among 1024 tokens of 64 channels the largest lies between 1 and 8.
  const float range = 448 * linear(*largest, "self_attn.q_proj", {64, 64}).input_scale;
  EXPECT_GT(range, 1);
  EXPECT_LE(range, 8);
}

TEST_F(Fp8Test, KeysAndValuesGetScalesWhereAskedFor) {
  run_pipeline(options("out", {.kv_cache_scales = KvCacheScales::Calibrated}));
  const auto checkpoint = open("out");
  EXPECT_EQ(checkpoint->quantization()->raw["kv_cache_scheme"]["num_bits"], 8);
  for (const char* name : {"self_attn.k_scale", "self_attn.v_scale"}) {
    const Tensor scale = to_dtype(checkpoint->tensor("model.layers.0." + std::string(name)), DType::F32);
    EXPECT_EQ(scale.shape(), Shape({1}));
    EXPECT_GT(scale.span<float>()[0], 0);
  }
  EXPECT_EQ(linear(*checkpoint, "self_attn.o_proj", {64, 64}).input_scale, 0);
}

TEST_F(Fp8Test, BytesDoNotDependOnThreads) {
  PipelineOptions one = options("one", {.activations = ActivationScheme::Static, .percentile = 99});
  PipelineOptions two = options("two", one.method_options.fp8);
  one.num_threads = 1;
  two.num_threads = 2;
  run_pipeline(one);
  run_pipeline(two);
  EXPECT_EQ(read_text_file(folder_ / "one" / "model.safetensors"),
            read_text_file(folder_ / "two" / "model.safetensors"));
}

TEST_F(Fp8Test, NamesTheLayerWhoseInputIsNotFinite) {
  write_tiny_model(folder_ / "broken", std::numeric_limits<float>::quiet_NaN());
  PipelineOptions broken = options("out", {.activations = ActivationScheme::Static});
  broken.model = folder_ / "broken";
  try {
    run_pipeline(broken);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("model.layers.0.self_attn.q_proj: its input holds NaN or infinity"));
  }
}

}  // namespace
}  // namespace nibble::quantize
