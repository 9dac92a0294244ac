#include "formats/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "core/expect_error.h"
#include "core/tensors_equal.h"
#include "formats/quantization_config.h"
#include "formats/raw_checkpoint.h"

namespace nibble::formats {
namespace {

using weights::Fp8Weights;

constexpr std::int64_t kOut = 130;
constexpr std::int64_t kIn = 200;

Json config(Json fields = Json::object()) {
  Json json{{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}};
  json.update(fields);
  return json;
}

/// Code (o, i) is 0x38 (1.0) in even columns and 0xc0 (-2.0) in odd ones.
Tensor codes() {
  Tensor weight = Tensor::empty(DType::F8E4M3, {kOut, kIn});
  std::size_t i = 0;
  for (Fp8E4M3& code : weight.span<Fp8E4M3>()) code.bits = i++ % 2 == 0 ? 0x38 : 0xc0;
  return weight;
}

/// Scales 0.5, 1, 1.5, … in some dtype and shape.
Tensor scales(DType dtype, const Shape& shape) {
  Tensor scale = Tensor::empty(DType::F32, shape);
  float next = 0;
  for (float& value : scale.span<float>()) value = next += 0.5f;
  return to_dtype(scale, dtype);
}

RawCheckpoint make_raw(const Json& quantization, const std::string& suffix, Tensor scale) {
  RawCheckpoint raw(quantization);
  raw.add("m.weight", codes());
  raw.add("m." + suffix, std::move(scale));
  return raw;
}

TEST(Fp8, ReadsEveryShapeAndDTypeOfScales) {
  struct Case {
    std::string suffix;
    Shape shape;
    Json fields;
    const char* described;
    float last;  // scale of the last weight
  };
  const Json blocks{{"weight_block_size", {128, 128}}};
  const std::vector<Case> cases{{"weight_scale", Shape(), Json::object(), "fp8 per tensor", 0.5f},
                                {"weight_scale", {1}, Json::object(), "fp8 per tensor", 0.5f},
                                {"weight_scale", {kOut}, Json::object(), "fp8 per channel", 65},
                                {"weight_scale", {kOut, 1}, Json::object(), "fp8 per channel", 65},
                                {"weight_scale_inv", {2, 2}, blocks, "fp8 block 128", 2},
                                {"weight_scale_inv", {2, 2}, Json::object(), "fp8 block 128", 2},
                                {"weight_scale", {3, 4}, {{"weight_block_size", {64, 64}}}, "fp8 block 64", 6},
                                {"weight_scale_inv", {1}, blocks, "fp8 per tensor", 0.5f}};
  for (const Case& c : cases) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      RawCheckpoint raw = make_raw(config(c.fields), c.suffix, scales(dtype, c.shape));
      const weights::LinearWeights read = raw.open().linear("m", {kOut, kIn});
      EXPECT_EQ(weights::describe(read), c.described) << c.suffix << c.shape.to_string();
      EXPECT_EQ(dequantized(read).back(), -2 * c.last) << c.suffix << c.shape.to_string();
      EXPECT_EQ(dequantized(read).front(), 0.5f);
    }
  }
}

TEST(Fp8, TakesInputScalesOnlyWhereTheSchemeIsStatic) {
  const auto input_scale = [](const char* scheme) {
    RawCheckpoint raw = make_raw(config({{"activation_scheme", scheme}}), "weight_scale", scales(DType::F32, {1}));
    raw.add("m.input_scale", std::vector<float>{0.25f}, Shape());
    return std::get<Fp8Weights>(raw.open().linear("m", {kOut, kIn})).input_scale;
  };
  EXPECT_EQ(input_scale("static"), 0.25f);
  EXPECT_EQ(input_scale("dynamic"), 0);
  RawCheckpoint without = make_raw(config({{"activation_scheme", "static"}}), "weight_scale", scales(DType::F32, {1}));
  const Checkpoint& checkpoint = without.open();
  expect_error(ErrorCode::NotFound, "m.input_scale", [&] { checkpoint.linear("m", {kOut, kIn}); });
}

TEST(Fp8, LeavesIgnoredModulesFloat) {
  RawCheckpoint raw = make_raw(config({{"ignored_layers", {"lm_head"}}, {"modules_to_not_convert", nullptr}}),
                               "weight_scale", scales(DType::F32, {1}));
  raw.add("lm_head.weight", std::vector<Half>(6, to_half(2)), {2, 3});
  const Checkpoint& checkpoint = raw.open();
  EXPECT_EQ(checkpoint.quantization()->modules_to_not_convert, std::vector<std::string>{"lm_head"});
  EXPECT_EQ(weights::describe(checkpoint.linear("lm_head", {2, 3})), "dense F16");
}

TEST(Fp8, RefusesOtherCodesByName) {
  const auto refused = [](const char* part, const Json& fields) {
    expect_error(ErrorCode::Unsupported, part, [&] { parse_fp8_config(config(fields)); });
  };
  refused("fmt 'e5m2'", {{"fmt", "e5m2"}});
  refused("fmt 'e4m3fnuz'", {{"fmt", "e4m3fnuz"}});
  refused("scale_fmt 'ue8m0'", {{"scale_fmt", "ue8m0"}});
  refused("activation_scheme 'token'", {{"activation_scheme", "token"}});
  refused("weight_block_size [128,64]", {{"weight_block_size", {128, 64}}});
  refused("weight_block_size [0,0]", {{"weight_block_size", {0, 0}}});
  refused("weight_block_size \"128\"", {{"weight_block_size", "128"}});
  refused("dynamic only", {{"weight_block_size", {128, 128}}, {"activation_scheme", "static"}});
  expect_error(ErrorCode::InvalidArgument, "ignored_layers",
               [&] { parse_fp8_config(config({{"ignored_layers", "lm_head"}})); });
}

TEST(Fp8, NamesTheTensorThatIsBroken) {
  const auto refused = [](ErrorCode code, const char* part, RawCheckpoint raw) {
    const Checkpoint& checkpoint = raw.open();
    expect_error(code, part, [&] { checkpoint.linear("m", {kOut, kIn}); });
  };
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    Tensor scale = scales(DType::F32, {kOut, 1});
    scale.span<float>()[7] = bad;
    refused(ErrorCode::Corrupt, "m: weight_scale: found", make_raw(config(), "weight_scale", std::move(scale)));
    RawCheckpoint input = make_raw(config({{"activation_scheme", "static"}}), "weight_scale", scales(DType::F32, {1}));
    input.add("m.input_scale", std::vector<float>{bad}, {1});
    refused(ErrorCode::Corrupt, "m.input_scale: found", std::move(input));
  }
  refused(ErrorCode::Corrupt, "m.weight_scale: expected one value, [130, 1], found [2, 2]",
          make_raw(config(), "weight_scale", scales(DType::F32, {2, 2})));
  refused(ErrorCode::Corrupt, "for blocks of 128, [2, 2], found [2, 3]",
          make_raw(config(), "weight_scale_inv", scales(DType::F32, {2, 3})));
  refused(ErrorCode::Corrupt, "m.weight_scale: expected F16, BF16 or F32",
          make_raw(config(), "weight_scale", Tensor::zeros(DType::U8, {kOut, 1})));
  RawCheckpoint nan(config());
  Tensor weight = codes();
  weight.span<Fp8E4M3>()[kIn * 3].bits = 0x7f;
  nan.add("m.weight", std::move(weight)).add("m.weight_scale", scales(DType::F32, {1}));
  refused(ErrorCode::Corrupt, "m: weight holds NaN", std::move(nan));
  RawCheckpoint wrong(config());
  wrong.add("m.weight", Tensor::zeros(DType::F8E4M3, {kIn, kOut})).add("m.weight_scale", scales(DType::F32, {1}));
  refused(ErrorCode::Corrupt, "m.weight: expected F8_E4M3 [130, 200], found F8_E4M3 [200, 130]", std::move(wrong));
  RawCheckpoint integer(config());
  integer.add("m.weight", Tensor::zeros(DType::I8, {kOut, kIn})).add("m.weight_scale", scales(DType::F32, {1}));
  refused(ErrorCode::Corrupt, "m.weight: expected F8_E4M3", std::move(integer));
}

TEST(Fp8, NamesTheScaleThatIsMissing) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder / "m");
  writer.add("m.weight", codes());
  writer.finish({Json{{"quantization_config", config()}}, {}});
  const auto checkpoint = Checkpoint::open(folder / "m");
  expect_error(ErrorCode::NotFound, "m.weight_scale", [&] { checkpoint->linear("m", {kOut, kIn}); });
  CheckpointWriter orphan(folder / "orphan");
  orphan.add("m.weight_scale", scales(DType::F32, {1}));
  expect_error(ErrorCode::InvalidArgument, "m lacks weight", [&] { orphan.finish({Json::object(), {}}); });
}

TEST(Fp8, WhatIsWrittenIsReadAsTheSameNumbers) {
  const std::vector<std::pair<Shape, std::int64_t>> kinds{{{1}, 0}, {{kOut}, 0}, {{2, 2}, 128}};
  for (const auto& [shape, block_size] : kinds) {
    for (const float input_scale : {0.0f, 0.125f}) {
      if (block_size > 0 && input_scale > 0) continue;
      Fp8Weights w;
      w.weight = codes();
      w.scale = scales(DType::F32, shape);
      w.block_size = block_size;
      w.input_scale = input_scale;
      const weights::LinearWeights written = std::move(w);
      const TemporaryFolder folder;
      CheckpointWriter writer(folder / "m");
      writer.add_linear("m", written, "fp8");
      QuantizationConfig quantization;
      quantization.modules_to_not_convert = {"lm_head"};
      quantization.raw = {{"activation_scheme", input_scale > 0 ? "static" : "dynamic"}};
      if (block_size > 0) quantization.raw["weight_block_size"] = {block_size, block_size};
      writer.finish({Json{{"quantization_config", make_quantization_config("fp8", quantization)}}, {}});
      const auto checkpoint = Checkpoint::open(folder / "m");
      const weights::LinearWeights read = checkpoint->linear("m", {kOut, kIn});
      const auto& before = std::get<Fp8Weights>(written);
      const auto& after = std::get<Fp8Weights>(read);
      EXPECT_TRUE(equal(after.weight, before.weight));
      EXPECT_TRUE(equal(after.scale, before.scale));
      EXPECT_EQ(after.block_size, block_size);
      EXPECT_EQ(after.input_scale, input_scale);
      EXPECT_EQ(checkpoint->quantization()->method, "fp8");
      EXPECT_EQ(checkpoint->quantization()->modules_to_not_convert.front(), "lm_head");
    }
  }
}

}  // namespace
}  // namespace nibble::formats
