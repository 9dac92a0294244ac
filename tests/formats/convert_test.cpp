#include "formats/convert.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/file.h"
#include "core/temporary_folder.h"
#include "formats/checkpoint.h"
#include "formats/quantization_config.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntShape;
using weights::GroupOrder;
using weights::LinearWeights;

struct Model {
  const char* format;
  GroupedIntShape shape;
  bool sym = false;
};

void make_symmetric(weights::GroupedIntWeights& w) {
  for (std::int16_t& zero : w.zeros.span<std::int16_t>()) zero = static_cast<std::int16_t>(1 << (w.bits - 1));
}

/// Two quantized linears, one with a bias, an embedding and a file of the model's own.
void write_model(const std::filesystem::path& folder, const Model& model) {
  std::mt19937 random(3);
  CheckpointWriter writer(folder);
  QuantizationConfig config;
  config.bits = model.shape.bits;
  config.group_size = model.shape.group_size;
  config.sym = model.sym;
  config.desc_act = model.shape.order == GroupOrder::Shuffled;
  for (const std::string module : {"model.layers.0.q_proj", "model.layers.0.up_proj"}) {
    weights::RandomGroupedInt made = weights::make_random_grouped_int(model.shape, random);
    if (model.sym) make_symmetric(made.weights);
    const LinearWeights linear = std::move(made.weights);
    writer.add_linear(module, linear, model.format);
    config.modules.push_back(scheme_of(module, linear, config.group_size));
  }
  Tensor bias = Tensor::zeros(DType::F16, {model.shape.out_features});
  writer.add("model.layers.0.q_proj.bias", bias);
  writer.add("model.embed_tokens.weight", Tensor::zeros(DType::BF16, {4, 2}));
  writer.finish({Json{{"model_type", "llama"}, {"quantization_config", make_quantization_config(model.format, config)}},
                 {{"tokenizer.json", "{}"}, {"quant_config.json", "{\"w_bit\": 4}"}}});
}

/// Every tensor's bytes, and the config, are the same.
void expect_same_files(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto first = Checkpoint::open(a);
  const auto second = Checkpoint::open(b);
  ASSERT_EQ(first->tensor_names(), second->tensor_names());
  for (const std::string& name : first->tensor_names()) {
    const TensorView x = first->tensor(name);
    const TensorView y = second->tensor(name);
    ASSERT_EQ(x.dtype(), y.dtype()) << name;
    ASSERT_EQ(x.shape(), y.shape()) << name;
    EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size_bytes()), 0) << name;
  }
  EXPECT_EQ(first->quantization()->bits, second->quantization()->bits);
  EXPECT_EQ(first->quantization()->group_size, second->quantization()->group_size);
  EXPECT_EQ(first->quantization()->sym, second->quantization()->sym);
  EXPECT_EQ(first->quantization()->checkpoint_format, second->quantization()->checkpoint_format);
}

TEST(Convert, ThereAndBackGivesTheSameBytes) {
  const GroupedIntShape four{.out_features = 64, .in_features = 128, .group_size = 64, .smallest_zero = 1};
  const GroupedIntShape one_group{.out_features = 64, .in_features = 128, .group_size = 128, .smallest_zero = 1};
  GroupedIntShape three = four;
  three.bits = 3;
  GroupedIntShape eight = four;
  eight.bits = 8;
  GroupedIntShape shuffled = four;
  shuffled.order = GroupOrder::Shuffled;
  struct Case {
    Model model;
    const char* other;
  };
  const std::vector<Case> cases{{{"gptq", four}, "gptq_v2"},
                                {{"gptq", four}, "autoawq"},
                                {{"gptq", four}, "compressed-tensors"},
                                {{"gptq", four, true}, "compressed-tensors"},
                                {{"gptq_v2", four}, "gptq"},
                                {{"gptq_v2", three}, "compressed-tensors"},
                                {{"gptq", eight, true}, "compressed-tensors"},
                                {{"gptq", shuffled}, "gptq_v2"},
                                {{"awq", four}, "gptq_v2"},
                                {{"awq", one_group}, "compressed-tensors"},
                                {{"compressed-tensors", four}, "awq"},
                                {{"compressed-tensors", three, true}, "gptq"}};
  for (const auto& [model, other] : cases) {
    SCOPED_TRACE(fmt::format("{} {} bits to {}", model.format, model.shape.bits, other));
    const TemporaryFolder folder;
    write_model(folder / "a", model);
    EXPECT_EQ(convert_checkpoint({folder / "a", folder / "b", other}).num_modules, 2);
    convert_checkpoint({folder / "b", folder / "c", model.format});
    expect_same_files(folder / "a", folder / "c");
    EXPECT_EQ(read_text_file(folder / "c/tokenizer.json"), "{}");
    EXPECT_FALSE(std::filesystem::exists(folder / "c/quant_config.json"));
  }
}

void expect_refused(const Model& model, const char* format, const char* part) {
  const TemporaryFolder folder;
  write_model(folder / "a", model);
  expect_error(ErrorCode::Unsupported, part, [&] { convert_checkpoint({folder / "a", folder / "b", format}); });
  EXPECT_FALSE(std::filesystem::exists(folder / "b/config.json"));
  EXPECT_FALSE(std::filesystem::exists(folder / "b/model.safetensors"));
}

TEST(Convert, RefusesWhatTheOtherFormatCannotHoldAndLeavesNoCheckpoint) {
  const GroupedIntShape plain{.out_features = 64, .in_features = 64};
  GroupedIntShape shuffled = plain;
  shuffled.order = GroupOrder::Shuffled;
  GroupedIntShape three = plain;
  three.bits = 3;
  GroupedIntShape narrow = plain;
  narrow.out_features = 40;
  expect_refused({"gptq_v2", plain}, "gptq", "model.layers.0.q_proj: zero point 0 is outside 1…15");
  expect_refused({"gptq_v2", shuffled}, "awq", "has no g_idx");
  expect_refused({"gptq_v2", shuffled}, "compressed-tensors", "no act-order groups");
  expect_refused({"gptq_v2", three}, "awq", "holds 4 bits only");
  expect_refused({"awq", narrow}, "gptq_v2", "multiples of 32");
  expect_refused({"gptq_v2", plain}, "fp8", "cannot be written as 'fp8'");
}

TEST(Convert, RefusesScalesThatWouldLoseDigits) {
  const TemporaryFolder folder;
  std::mt19937 random(1);
  weights::RandomGroupedInt made = weights::make_random_grouped_int({.out_features = 32, .smallest_zero = 1}, random);
  made.weights.scales = to_dtype(made.weights.scales, DType::BF16);
  made.weights.scales.span<BFloat16>()[5] = to_bfloat16(1e-6f);  // a subnormal f16 has fewer digits
  {
    CheckpointWriter writer(folder / "a");
    const LinearWeights linear = std::move(made.weights);
    writer.add_linear("m", linear, "compressed-tensors");
    QuantizationConfig config;
    config.modules = {scheme_of("m", linear, 32)};
    writer.finish({Json{{"quantization_config", make_quantization_config("compressed-tensors", config)}}, {}});
  }
  expect_error(ErrorCode::Unsupported, "m: gptq_v2 cannot hold its scales, which have more digits",
               [&] { convert_checkpoint({folder / "a", folder / "b", "gptq_v2"}); });
  EXPECT_EQ(convert_checkpoint({folder / "a", folder / "c", "compressed-tensors"}).num_modules, 1);
}

TEST(Convert, CarriesFloatsBetweenVllmsFormAndCompressedTensors) {
  for (const std::int64_t block_size : {0, 128}) {
    const TemporaryFolder folder;
    weights::Fp8Weights w;
    w.weight = Tensor::empty(DType::F8E4M3, {256, 128});
    std::uint8_t next = 0;
    for (Fp8E4M3& code : w.weight.span<Fp8E4M3>()) code.bits = next = static_cast<std::uint8_t>((next + 37) & 0x7e);
    w.block_size = block_size;
    w.scale = Tensor::empty(DType::F32, block_size > 0 ? Shape{2, 1} : Shape{256});
    float scale = 0.01f;
    for (float& value : w.scale.span<float>()) value = scale *= 1.01f;
    const LinearWeights linear = std::move(w);
    QuantizationConfig config;
    config.modules = {scheme_of("m", linear, -1)};
    config.raw = {{"kv_cache_scheme", {{"num_bits", 8}, {"type", "float"}}}};
    CheckpointWriter writer(folder / "a");
    writer.add_linear("m", linear, "fp8");
    writer.finish({Json{{"quantization_config", make_quantization_config("fp8", config)}}, {}});
    convert_checkpoint({folder / "a", folder / "b", "compressed-tensors"});
    convert_checkpoint({folder / "b", folder / "c", "fp8"});
    expect_same_files(folder / "a", folder / "c");
    const Json json = read_json_file(folder / "c/config.json")["quantization_config"];
    EXPECT_EQ(json.contains("weight_block_size"), block_size > 0);
    EXPECT_EQ(json["ignored_layers"], Json({"lm_head"}));
    EXPECT_EQ(json["kv_cache_scheme"]["num_bits"], 8);
  }
}

TEST(Convert, SaysWhatItTakes) {
  const TemporaryFolder folder;
  {
    CheckpointWriter writer(folder / "float");
    writer.add("a.weight", Tensor::zeros(DType::F16, {2, 2}));
    writer.finish({Json::object(), {}});
  }
  expect_error(ErrorCode::InvalidArgument, "holds no quantized linears",
               [&] { convert_checkpoint({folder / "float", folder / "b", "gptq"}); });
  expect_error(ErrorCode::InvalidArgument, "unknown format 'marlin'",
               [&] { convert_checkpoint({folder / "float", folder / "b", "marlin"}); });
}

}  // namespace
}  // namespace nibble::formats
