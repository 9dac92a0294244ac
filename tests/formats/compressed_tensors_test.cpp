#include "formats/compressed_tensors.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

#include "core/expect_error.h"
#include "formats/compressed_tensors_scheme.h"
#include "formats/quantization_config.h"
#include "formats/raw_checkpoint.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::Fp8Weights;
using weights::GroupedIntWeights;

Json int_args(std::int64_t bits, bool symmetric, std::int64_t group_size) {
  return {{"num_bits", bits}, {"type", "int"}, {"symmetric", symmetric}, {"group_size", group_size}};
}

Json config_with(Json weights, const char* format = "pack-quantized", Json fields = Json::object()) {
  Json json{{"quant_method", "compressed-tensors"},
            {"format", format},
            {"quantization_status", "compressed"},
            {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", std::move(weights)}}}}},
            {"ignore", {"lm_head"}}};
  json.update(fields);
  return json;
}

const Tensor& tensor_of(const std::vector<NamedTensor>& tensors, std::string_view suffix) {
  for (const NamedTensor& named : tensors) {
    if (named.suffix == suffix) return named.tensor;
  }
  throw Error(ErrorCode::NotFound, std::string(suffix));
}

/// Two rows of eight: q = -8 … -1 and 0 … 7; scales 1 and 2.
RawCheckpoint make_golden(const Json& quantization_config) {
  RawCheckpoint raw(quantization_config);
  raw.add("m.weight_packed", std::vector<std::int32_t>{0x76543210, static_cast<std::int32_t>(0xfedcba98u)}, {2, 1});
  raw.add("m.weight_scale", std::vector<Half>{to_half(1), to_half(2)}, {2, 1});
  raw.add("m.weight_shape", std::vector<std::int64_t>{2, 8}, {2});
  return raw;
}

TEST(CompressedTensors, ReadsTheGoldenWordsOfFourBits) {
  RawCheckpoint raw = make_golden(config_with(int_args(4, true, -1)));
  EXPECT_EQ(dequantized(raw.open().linear("m", {2, 8})),
            (std::vector<float>{-8, -7, -6, -5, -4, -3, -2, -1, 0, 2, 4, 6, 8, 10, 12, 14}));
}

TEST(CompressedTensors, ReadsZeroPointsPackedAlongOutputs) {
  RawCheckpoint raw = make_golden(config_with(int_args(4, false, -1)));
  raw.add("m.weight_zero_point", std::vector<std::int32_t>{0x00000097}, {1, 1});  // -1 and 1
  EXPECT_EQ(dequantized(raw.open().linear("m", {2, 8})),
            (std::vector<float>{-7, -6, -5, -4, -3, -2, -1, 0, -2, 0, 2, 4, 6, 8, 10, 12}));
}

TEST(CompressedTensors, ReadsThePaddedWordsOfOldReleases) {
  RawCheckpoint raw(config_with(int_args(3, true, -1)));
  std::vector<std::int32_t> words;
  std::vector<float> expected;
  for (std::uint32_t i = 0; i < 32; i += 10) {
    std::uint32_t word = 0;
    for (std::uint32_t j = i; j < std::min(i + 10, 32u); ++j) {
      word |= j % 8 << (3 * (j - i));
      expected.push_back(static_cast<float>(j % 8) - 4);
    }
    words.push_back(static_cast<std::int32_t>(word));
  }
  raw.add("m.weight_packed", words, {1, 4});
  raw.add("m.weight_scale", std::vector<Half>{to_half(1)}, {1, 1});
  const Checkpoint& checkpoint = raw.open();
  EXPECT_EQ(dequantized(checkpoint.linear("m", {1, 32})), expected);
}

TEST(CompressedTensors, ReadsBytesOfIntQuantized) {
  for (const char* format : {"int-quantized", "naive-quantized"}) {
    RawCheckpoint raw(config_with({{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}}, format));
    raw.add("m.weight", std::vector<std::int8_t>{-128, 127, 0, 3}, {2, 2});
    raw.add("m.weight_scale", std::vector<BFloat16>{to_bfloat16(0.5f), to_bfloat16(2)}, {2, 1});
    EXPECT_EQ(dequantized(raw.open().linear("m", {2, 2})), (std::vector<float>{-64, 63.5f, 0, 6}));
  }
  RawCheckpoint tensor(config_with({{"num_bits", 4}, {"type", "int"}}, "int-quantized"));
  tensor.add("m.weight", std::vector<std::int8_t>{-8, 8}, {1, 2});
  tensor.add("m.weight_scale", std::vector<float>{1}, {1});
  const Checkpoint& checkpoint = tensor.open();
  expect_error(ErrorCode::Corrupt, "m.weight: 8 in row 0 is outside of 4 bits",
               [&] { checkpoint.linear("m", {1, 2}); });
}

TEST(CompressedTensors, ReadsFloatsPerTensorChannelAndBlock) {
  const auto read = [](Json args, const std::vector<float>& scales, Shape shape) {
    RawCheckpoint raw(config_with(std::move(args), "float-quantized"));
    raw.add("m.weight", std::vector<Fp8E4M3>{{0x38}, {0xb8}}, {2, 1});
    raw.add("m.weight_scale", scales, shape);
    return dequantized(raw.open().linear("m", {2, 1}));
  };
  const Json args{{"num_bits", 8}, {"type", "float"}};
  const auto with = [&](const Json& fields) {
    Json merged = args;
    merged.update(fields);
    return merged;
  };
  EXPECT_EQ(read(args, {3}, {1}), (std::vector<float>{3, -3}));
  EXPECT_EQ(read(args, {3}, {}), (std::vector<float>{3, -3}));
  EXPECT_EQ(read(with({{"strategy", "channel"}}), {3, 5}, {2, 1}), (std::vector<float>{3, -5}));
  const Json block{{"strategy", "block"}, {"block_structure", {128, 128}}};
  EXPECT_EQ(read(with(block), {2}, {1, 1}), (std::vector<float>{2, -2}));
  const Json old_block{{"strategy", "block"}, {"block_structure", "128x128"}};
  EXPECT_EQ(read(with(old_block), {2}, {1, 1}), (std::vector<float>{2, -2}));
}

TEST(CompressedTensors, ReadsGIdxUnlessItWasNeverSet) {
  const auto read = [](std::vector<std::int32_t> g_idx) {
    RawCheckpoint raw(config_with(int_args(4, true, 4)));
    raw.add("m.weight_packed", std::vector<std::int32_t>{0x76543210}, {1, 1});
    raw.add("m.weight_scale", std::vector<Half>{to_half(1), to_half(2)}, {1, 2});
    raw.add("m.weight_g_idx", g_idx, {8});
    return dequantized(raw.open().linear("m", {1, 8}));
  };
  EXPECT_EQ(read(std::vector<std::int32_t>(8, -1)), (std::vector<float>{-8, -7, -6, -5, -8, -6, -4, -2}));
  EXPECT_EQ(read({1, 0, 0, 0, 0, 1, 1, 1}), (std::vector<float>{-16, -7, -6, -5, -4, -6, -4, -2}));
  expect_error(ErrorCode::Corrupt, "m.weight_g_idx: entry 2", [&] { read({2, 0, 0, 0, 0, 1, 1, 1}); });
}

TEST(CompressedTensors, ErrorsNameTensorExpectedAndFound) {
  RawCheckpoint shape = make_golden(config_with(int_args(4, true, -1)));
  const Checkpoint& other = shape.open();
  expect_error(ErrorCode::Corrupt, "m.weight_shape: says [2, 8], expected [2, 16]",
               [&] { other.linear("m", {2, 16}); });
  RawCheckpoint zeros = make_golden(config_with(int_args(4, false, -1)));
  const Checkpoint& asymmetric = zeros.open();
  expect_error(ErrorCode::Corrupt, "m.weight_zero_point is missing", [&] { asymmetric.linear("m", {2, 8}); });
  RawCheckpoint bits = make_golden(config_with(int_args(8, true, -1)));
  const Checkpoint& wrong_bits = bits.open();
  expect_error(ErrorCode::Corrupt, "m.weight_packed: expected I32 [2, 2], found I32 [2, 1]",
               [&] { wrong_bits.linear("m", {2, 8}); });
  RawCheckpoint group = make_golden(config_with(int_args(4, true, 4)));
  const Checkpoint& wrong_group = group.open();
  expect_error(ErrorCode::Corrupt, "m.weight_scale: expected", [&] { wrong_group.linear("m", {2, 8}); });
  RawCheckpoint ignored = make_golden(config_with(int_args(4, true, -1), "pack-quantized", {{"ignore", {"re:m"}}}));
  const Checkpoint& contradiction = ignored.open();
  expect_error(ErrorCode::Corrupt, "m: is quantized in the file, but config.json ignores it",
               [&] { contradiction.linear("m", {2, 8}); });
}

TEST(CompressedTensors, NamesWinOverPatternsAndPatternsOverClasses) {
  const auto group = [](const char* target, std::int64_t bits) {
    return Json{{"targets", {target}}, {"weights", int_args(bits, true, -1)}};
  };
  const CompressedConfig config = parse_compressed_config(
      {{"format", "pack-quantized"},
       {"config_groups",
        {{"a", group("Linear", 4)}, {"b", group("re:.*down_proj$", 8)}, {"c", group("x.1.down_proj", 2)}}},
       {"ignore", {"lm_head", "re:.*router"}}});
  EXPECT_EQ(config.scheme_of("x.0.q_proj")->bits, 4);
  EXPECT_EQ(config.scheme_of("x.0.down_proj")->bits, 8);
  EXPECT_EQ(config.scheme_of("x.1.down_proj")->bits, 2);
  EXPECT_EQ(config.scheme_of("lm_head"), nullptr);
  EXPECT_EQ(config.scheme_of("x.router.proj"), nullptr);  // from the start, not to the end
}

TEST(CompressedTensors, HostilePatternsEndInAnError) {
  const auto match = [](const std::string& pattern, const std::string& name) {
    parse_compressed_config(config_with(int_args(4, true, -1), "pack-quantized", {{"ignore", {"re:" + pattern}}}))
        .scheme_of(name);
  };
  expect_error(ErrorCode::InvalidArgument, "not a valid regular expression", [&] { match("(", "m"); });
  expect_error(ErrorCode::InvalidArgument, "too many steps", [&] { match("(a+)+$", std::string(40, 'a') + "!"); });
  expect_error(ErrorCode::InvalidArgument, "bytes long", [&] { match(std::string(5000, 'a'), "m"); });
  const Json many = std::vector<std::string>(1001, "re:a");
  expect_error(ErrorCode::InvalidArgument, "more than 1000", [&] {
    parse_compressed_config(config_with(int_args(4, true, -1), "pack-quantized", {{"ignore", many}}));
  });
}

TEST(CompressedTensors, RefusesByNameWhatItDoesNotRead) {
  const auto refused = [](const char* part, const Json& config) {
    expect_error(ErrorCode::Unsupported, part, [&] { parse_compressed_tensors_config(config); });
  };
  const Json four = int_args(4, true, -1);
  refused("format 'nvfp4-pack-quantized'", config_with(four, "nvfp4-pack-quantized"));
  refused("format 'marlin-24'", config_with(four, "marlin-24"));
  refused("num_bits 5", config_with(int_args(5, true, -1)));
  refused("floats of 4 bits", config_with({{"num_bits", 4}, {"type", "float"}}, "float-quantized"));
  refused("strategy 'tensor_group'", config_with({{"num_bits", 4}, {"strategy", "tensor_group"}}));
  refused("block_structure [64,64]",
          config_with({{"num_bits", 8}, {"type", "float"}, {"strategy", "block"}, {"block_structure", {64, 64}}},
                      "float-quantized"));
  refused("sparsity_config: format 'sparse-24-bitmask'",
          config_with(four, "pack-quantized", {{"sparsity_config", {{"format", "sparse-24-bitmask"}}}}));
  refused("transform_config",
          config_with(four, "pack-quantized",
                      {{"transform_config", {{"config_groups", {{"R1", {{"type", "hadamard"}}}}}}}}));
  refused("quantization_status 'frozen'", config_with(four, "pack-quantized", {{"quantization_status", "frozen"}}));
  refused("config_groups.W4A16: a preset by name",
          config_with(four, "pack-quantized", {{"config_groups", {{"W4A16", {"Linear"}}}}}));
}

TEST(CompressedTensors, WriterLeavesOutMiddleZerosAndRefusesWhatDoesNotFit) {
  std::mt19937 random(1);
  weights::RandomGroupedInt made = weights::make_random_grouped_int({}, random);
  const auto write = [](GroupedIntWeights w) { return write_compressed_tensors(std::move(w)); };
  EXPECT_EQ(write(std::move(made.weights)).size(), 4u);

  weights::RandomGroupedInt symmetric = weights::make_random_grouped_int({}, random);
  for (std::int16_t& zero : symmetric.weights.zeros.span<std::int16_t>()) zero = 8;
  const std::vector<NamedTensor> tensors = write(std::move(symmetric.weights));
  EXPECT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensor_of(tensors, "weight_shape").span<std::int64_t>()[1], 64);

  weights::RandomGroupedInt shuffled =
      weights::make_random_grouped_int({.order = weights::GroupOrder::Shuffled}, random);
  expect_error(ErrorCode::Unsupported, "no act-order groups", [&] { write(std::move(shuffled.weights)); });
  weights::RandomGroupedInt ragged = weights::make_random_grouped_int({.in_features = 80}, random);
  expect_error(ErrorCode::Unsupported, "needs whole groups", [&] { write(std::move(ragged.weights)); });
  weights::RandomGroupedInt v1 = weights::make_random_grouped_int({}, random);
  v1.weights.zeros.span<std::int16_t>()[0] = 16;
  expect_error(ErrorCode::Unsupported, "zero point 16", [&] { write(std::move(v1.weights)); });
}

TEST(CompressedTensors, ConfigPutsWhatDiffersIntoGroupsOfItsOwn) {
  QuantizationConfig config;
  config.modules = {
      {.module = "a", .group_size = 64},
      {.module = "b", .group_size = 64},
      {.module = "c", .bits = 8, .group_size = -1, .sym = false},
      {.module = "d", .kind = ModuleScheme::Kind::Float8, .bits = 8, .group_size = 0, .static_activations = true}};
  const Json json = make_quantization_config("compressed-tensors", config);
  EXPECT_EQ(json["format"], "mixed-precision");
  EXPECT_EQ(json["ignore"], Json({"lm_head"}));
  EXPECT_EQ(json["config_groups"]["group_0"]["targets"], Json({"Linear"}));
  EXPECT_EQ(json["config_groups"]["group_2"]["input_activations"]["strategy"], "tensor");
  const CompressedConfig back = parse_compressed_config(json);
  EXPECT_EQ(back.scheme_of("a")->group_size, 64);
  EXPECT_EQ(back.scheme_of("c")->strategy, CompressedStrategy::Channel);
  EXPECT_FALSE(back.scheme_of("c")->symmetric);
  EXPECT_EQ(back.scheme_of("d")->layout, CompressedLayout::FloatQuantized);
}

}  // namespace
}  // namespace nibble::formats
