#include "formats/awq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/expect_error.h"
#include "formats/quantization_config.h"
#include "formats/raw_checkpoint.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntWeights;
using weights::GroupOrder;

Json config(Json fields = Json::object()) {
  Json json{{"quant_method", "awq"}, {"bits", 4}, {"group_size", 32}, {"zero_point", true}, {"version", "gemm"}};
  json.update(fields);
  return json;
}

/// 8 outputs, 32 inputs: output o has code o and zero 7 - o everywhere.
RawCheckpoint make_raw(const Json& quantization_config) {
  RawCheckpoint raw(quantization_config);
  raw.add("m.qweight", std::vector<std::int32_t>(32, 0x75316420), {32, 1});
  raw.add("m.qzeros", std::vector<std::int32_t>(1, 0x02461357), {1, 1});
  raw.add("m.scales", std::vector<Half>(8, to_half(0.5f)), {1, 8});
  return raw;
}

TEST(Awq, ReadsColumnsInterleavedAs02461357) {
  RawCheckpoint raw = make_raw(config());
  const std::vector<float> values = dequantized(raw.open().linear("m", {8, 32}));
  for (std::size_t o = 0; o < 8; ++o) {
    EXPECT_EQ(values[o * 32], 0.5f * (static_cast<float>(o) - (7.0f - static_cast<float>(o)))) << o;
  }
}

TEST(Awq, WritesTheGoldenWords) {
  RawCheckpoint raw = make_raw(config());
  const weights::LinearWeights read = raw.open().linear("m", {8, 32});
  const auto tensors = write_awq(std::get<GroupedIntWeights>(read));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].suffix, "qweight");
  EXPECT_EQ(words_of(tensors[0].tensor), std::vector<std::uint32_t>(32, 0x75316420));
  EXPECT_EQ(words_of(tensors[1].tensor), (std::vector<std::uint32_t>{0x02461357}));
  EXPECT_EQ(tensors[2].tensor.shape(), Shape({1, 8}));
}

TEST(Awq, ReadsTheOldSpellingsOfItsConfig) {
  const QuantizationConfig old =
      parse_awq_config({{"w_bit", 4}, {"q_group_size", 64}, {"zero_point", false}, {"version", "GEMM"}});
  EXPECT_EQ(old.group_size, 64);
  EXPECT_TRUE(old.sym);
  EXPECT_EQ(old.checkpoint_format, "gemm");
}

TEST(Awq, RefusesVariantsByName) {
  const auto refused = [](ErrorCode code, const char* part, const Json& fields) {
    expect_error(code, part, [&] { parse_awq_config(config(fields)); });
  };
  refused(ErrorCode::Unsupported, "bits 3", {{"bits", 3}});
  refused(ErrorCode::Unsupported, "'gemv_fast'", {{"version", "gemv_fast"}});
  refused(ErrorCode::Unsupported, "'marlin'", {{"version", "Marlin"}});
  refused(ErrorCode::InvalidArgument, "group_size 0", {{"group_size", 0}});
  refused(ErrorCode::InvalidArgument, "modules_to_not_convert", {{"modules_to_not_convert", 3}});
}

TEST(Awq, ErrorsNameTensorExpectedAndFoundShape) {
  RawCheckpoint raw = make_raw(config());
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "m.qweight: expected I32 [64, 1], found I32 [32, 1]",
               [&] { checkpoint.linear("m", {8, 64}); });
  RawCheckpoint groups = make_raw(config({{"group_size", 16}}));
  const Checkpoint& wrong_groups = groups.open();
  expect_error(ErrorCode::Corrupt, "m.qzeros: expected I32 [2, 1], found I32 [1, 1]",
               [&] { wrong_groups.linear("m", {8, 32}); });
  expect_error(ErrorCode::Corrupt, "multiples of group_size 32", [&] { checkpoint.linear("m", {8, 40}); });
}

TEST(Awq, TellsGptqsLayoutApart) {
  RawCheckpoint raw(config());
  raw.add("m.qweight", std::vector<std::int32_t>(128), {4, 32});
  raw.add("m.qzeros", std::vector<std::int32_t>(4), {1, 4});
  raw.add("m.scales", std::vector<Half>(32, to_half(1)), {1, 32});
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "GPTQ's layout", [&] { checkpoint.linear("m", {32, 32}); });
}

TEST(Awq, ReadsBackWhatItWroteWhateverTheTilesHold) {
  std::mt19937 random(7);
  // A tile of the reader has 128 inputs and 128 outputs.
  for (const auto& [out, in, group_size] : std::vector<std::array<std::int64_t, 3>>{
           {8, 32, 32}, {8, 36, 36}, {128, 128, 32}, {136, 160, 32}, {264, 140, 28}, {120, 388, 4}, {304, 517, 47}}) {
    const auto made =
        weights::make_random_grouped_int({.out_features = out, .in_features = in, .group_size = group_size}, random);
    RawCheckpoint raw(config({{"group_size", group_size}}));
    for (auto& tensor : write_awq(made.weights)) raw.add("m." + std::string(tensor.suffix), std::move(tensor.tensor));
    const weights::LinearWeights linear = raw.open().linear("m", {out, in});
    const auto& read = std::get<GroupedIntWeights>(linear);
    EXPECT_TRUE(std::ranges::equal(read.codes.span<std::uint8_t>(), made.weights.codes.span<std::uint8_t>()))
        << out << " x " << in;
    EXPECT_TRUE(std::ranges::equal(read.zeros.span<std::int16_t>(), made.weights.zeros.span<std::int16_t>()));
  }
}

TEST(Awq, WriterRefusesWhatTheFormatCannotHold) {
  std::mt19937 random(5);
  const auto refused = [&](const char* part, const weights::GroupedIntShape& shape) {
    const auto made = weights::make_random_grouped_int(shape, random);
    expect_error(ErrorCode::Unsupported, part, [&] { write_awq(made.weights); });
  };
  refused("holds 4 bits only", {.bits = 8});
  refused("no g_idx", {.order = GroupOrder::Shuffled});
  refused("12 outputs are not a multiple of 8", {.out_features = 12});
  refused("group_size 48 does not divide 64", {.group_size = 48});
}

}  // namespace
}  // namespace nibble::formats
