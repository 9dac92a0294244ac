#include "formats/gptq.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

#include "core/expect_error.h"
#include "formats/quantization_config.h"
#include "formats/raw_checkpoint.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntWeights;

Json config(Json fields = Json::object()) {
  Json json{{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}, {"sym", false}, {"desc_act", false}};
  json.update(fields);
  return json;
}

const Tensor& tensor_of(const std::vector<NamedTensor>& tensors, std::string_view suffix) {
  for (const NamedTensor& named : tensors) {
    if (named.suffix == suffix) return named.tensor;
  }
  throw Error(ErrorCode::NotFound, std::string(suffix));
}

/// 32 by 32 with one group, code (o, i) = i % 2^bits, every scale 1 and every zero `zero`.
GroupedIntWeights make_ramp(std::int32_t bits, int zero) {
  GroupedIntWeights w;
  w.out_features = w.in_features = w.group_size = 32;
  w.bits = bits;
  w.codes = Tensor::empty(DType::U8, {32, weights::packed_row_bytes(32, bits)});
  std::vector<std::uint8_t> row(32);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::uint8_t>(i % (std::size_t{1} << bits));
  for (std::int64_t o = 0; o < 32; ++o) weights::pack_codes(row, bits, w.codes.matrix<std::uint8_t>().row_span(o));
  w.scales = Tensor::empty(DType::F16, {32, 1});
  for (Half& scale : w.scales.span<Half>()) scale = to_half(1);
  w.zeros = Tensor::empty(DType::I16, {32, 1});
  for (std::int16_t& value : w.zeros.span<std::int16_t>()) value = static_cast<std::int16_t>(zero);
  return w;
}

/// The same, as it stands in a file of the given words.
RawCheckpoint make_raw(const Json& quantization_config, std::uint32_t qzeros_word = 0x77777777u) {
  RawCheckpoint raw(quantization_config);
  std::vector<std::int32_t> qweight;
  for (const std::uint32_t word : {0x76543210u, 0xfedcba98u, 0x76543210u, 0xfedcba98u}) {
    qweight.insert(qweight.end(), 32, static_cast<std::int32_t>(word));
  }
  raw.add("m.qweight", qweight, {4, 32});
  raw.add("m.qzeros", std::vector<std::int32_t>(4, static_cast<std::int32_t>(qzeros_word)), {1, 4});
  raw.add("m.scales", std::vector<Half>(32, to_half(1)), {1, 32});
  return raw;
}

TEST(Gptq, PacksCodesAlongInputsIntoTheGoldenWords) {
  const auto first_column = [](std::int32_t bits) {
    const auto tensors = write_gptq_v2(make_ramp(bits, 1));
    const Tensor& qweight = tensor_of(tensors, "qweight");
    std::vector<std::uint32_t> words;
    for (std::int64_t r = 0; r < qweight.shape()[0]; ++r) {
      words.push_back(static_cast<std::uint32_t>(qweight.matrix<std::int32_t>().row(r)[31]));
    }
    return words;
  };
  EXPECT_EQ(first_column(4), (std::vector<std::uint32_t>{0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98}));
  EXPECT_EQ(first_column(2), (std::vector<std::uint32_t>{0xe4e4e4e4, 0xe4e4e4e4}));
  EXPECT_EQ(first_column(3), (std::vector<std::uint32_t>{0x88fac688, 0xc688fac6, 0xfac688fa}));
  EXPECT_EQ(first_column(8)[0], 0x03020100u);
}

TEST(Gptq, StoresTheSymmetricZeroMinusOneInV1AndPlainInV2) {
  struct Golden {
    std::int32_t bits;
    std::vector<std::uint32_t> v1;
    std::vector<std::uint32_t> v2;
  };
  const std::vector<Golden> goldens{
      {2, {0x55555555, 0x55555555}, {0xaaaaaaaa, 0xaaaaaaaa}},
      {3, {0xdb6db6db, 0xb6db6db6, 0x6db6db6d}, {0x24924924, 0x49249249, 0x92492492}},
      {4, std::vector<std::uint32_t>(4, 0x77777777), std::vector<std::uint32_t>(4, 0x88888888)},
      {8, std::vector<std::uint32_t>(8, 0x7f7f7f7f), std::vector<std::uint32_t>(8, 0x80808080)}};
  for (const Golden& golden : goldens) {
    const GroupedIntWeights w = make_ramp(golden.bits, 1 << (golden.bits - 1));
    EXPECT_EQ(words_of(tensor_of(write_gptq_v1(w), "qzeros")), golden.v1) << golden.bits;
    EXPECT_EQ(words_of(tensor_of(write_gptq_v2(w), "qzeros")), golden.v2) << golden.bits;
  }
}

TEST(Gptq, ReadsZerosStoredMinusOneInV1AndPlainInV2) {
  const auto first_value = [](const char* format) {
    RawCheckpoint raw = make_raw(config({{"checkpoint_format", format}}));
    return dequantized(raw.open().linear("m", {32, 32})).front();
  };
  EXPECT_EQ(first_value("gptq"), -8);
  EXPECT_EQ(first_value("gptq_v2"), -7);
  RawCheckpoint unnamed = make_raw(config());
  EXPECT_EQ(dequantized(unnamed.open().linear("m", {32, 32})).front(), -8);
}

TEST(Gptq, ReadsTheLargestV1FieldAs2ToTheBits) {
  RawCheckpoint raw = make_raw(config(), 0xffffffffu);
  EXPECT_EQ(dequantized(raw.open().linear("m", {32, 32})).front(), -16);
}

TEST(Gptq, UsesStoredZerosWhereTheConfigSaysSym) {
  RawCheckpoint raw = make_raw(config({{"sym", true}}), 0x22222222u);
  EXPECT_EQ(dequantized(raw.open().linear("m", {32, 32})).front(), -3);
}

TEST(Gptq, ReadsFilesWithoutGIdxUnlessTheOrderMatters) {
  RawCheckpoint plain = make_raw(config());
  EXPECT_FALSE(std::get<GroupedIntWeights>(plain.open().linear("m", {32, 32})).has_g_idx());
  RawCheckpoint act_order = make_raw(config({{"desc_act", true}}));
  const Checkpoint& checkpoint = act_order.open();
  expect_error(ErrorCode::Corrupt, "m.g_idx is missing", [&] { checkpoint.linear("m", {32, 32}); });
}

TEST(Gptq, DropsATrivialGIdxAndCountsNegativeEntriesFromTheEnd) {
  std::vector<std::int32_t> g_idx(32, 0);
  RawCheckpoint trivial = make_raw(config({{"desc_act", true}}));
  trivial.add("m.g_idx", g_idx, {32});
  EXPECT_FALSE(std::get<GroupedIntWeights>(trivial.open().linear("m", {32, 32})).has_g_idx());

  RawCheckpoint negative = make_raw(config());
  negative.add("m.g_idx", std::vector<std::int32_t>(32, -1), {32});
  EXPECT_FALSE(std::get<GroupedIntWeights>(negative.open().linear("m", {32, 32})).has_g_idx());

  for (const std::int32_t outside : {1, -2, INT32_MIN, INT32_MAX}) {
    g_idx[7] = outside;
    RawCheckpoint broken = make_raw(config());
    broken.add("m.g_idx", g_idx, {32});
    const Checkpoint& checkpoint = broken.open();
    expect_error(ErrorCode::Corrupt, "m.g_idx: entry " + std::to_string(outside),
                 [&] { checkpoint.linear("m", {32, 32}); });
  }
}

TEST(Gptq, OneGroupMakesDescActWithoutEffect) {
  RawCheckpoint raw = make_raw(config({{"group_size", -1}, {"desc_act", true}}));
  const Checkpoint& checkpoint = raw.open();
  EXPECT_FALSE(checkpoint.quantization()->desc_act);
  EXPECT_EQ(std::get<GroupedIntWeights>(checkpoint.linear("m", {32, 32})).group_size, 32);
}

TEST(Gptq, ErrorsNameTensorExpectedAndFoundShape) {
  RawCheckpoint raw = make_raw(config());
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "m.qweight: expected I32 [8, 32], found I32 [4, 32]",
               [&] { checkpoint.linear("m", {32, 64}); });
  RawCheckpoint scales = make_raw(config({{"group_size", 16}}));
  const Checkpoint& wrong_groups = scales.open();
  expect_error(ErrorCode::Corrupt, "m.scales: expected F16, BF16 or F32 of shape [2, 32], found F16 [1, 32]",
               [&] { wrong_groups.linear("m", {32, 32}); });
  RawCheckpoint bits = make_raw(config({{"bits", 8}}));
  const Checkpoint& wrong_bits = bits.open();
  expect_error(ErrorCode::Corrupt, "m.qweight: expected I32 [8, 32]", [&] { wrong_bits.linear("m", {32, 32}); });
}

TEST(Gptq, RefusesScalesThatAreNotFinite) {
  RawCheckpoint raw(config());
  raw.add("m.qweight", std::vector<std::int32_t>(128), {4, 32});
  raw.add("m.qzeros", std::vector<std::int32_t>(4), {1, 4});
  raw.add("m.scales", std::vector<Half>(32, Half{0x7e00}), {1, 32});
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "m: scales holds NaN", [&] { checkpoint.linear("m", {32, 32}); });
}

TEST(Gptq, TellsAwqsLayoutApart) {
  RawCheckpoint raw(config());
  raw.add("m.qweight", std::vector<std::int32_t>(128), {32, 4});
  raw.add("m.qzeros", std::vector<std::int32_t>(4), {1, 4});
  raw.add("m.scales", std::vector<Half>(32, to_half(1)), {1, 32});
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "AWQ's layout", [&] { checkpoint.linear("m", {32, 32}); });
}

TEST(Gptq, DynamicRulesChangeTheFirstModuleTheyMatch) {
  const Json rules{
      {"-:.*lm_head", Json::object()}, {"+:other", {{"bits", 2}}}, {"m", {{"checkpoint", 1}, {"bits", 8}}}};
  RawCheckpoint raw = make_raw(config({{"dynamic", rules}}));
  const Checkpoint& checkpoint = raw.open();
  expect_error(ErrorCode::Corrupt, "expected I32 [8, 32]", [&] { checkpoint.linear("m", {32, 32}); });
  RawCheckpoint hostile = make_raw(config({{"dynamic", {{"(a+)+$", {{"bits", 8}}}, {"(", {{"bits", 8}}}}}}));
  const Checkpoint& broken = hostile.open();
  expect_error(ErrorCode::InvalidArgument, "not a valid regular expression", [&] { broken.linear("m", {32, 32}); });
}

TEST(Gptq, RefusesVariantsByName) {
  const auto refused = [](ErrorCode code, const char* part, const Json& fields) {
    expect_error(code, part, [&] { parse_gptq_config(config(fields)); });
  };
  refused(ErrorCode::Unsupported, "bits 5", {{"bits", 5}});
  refused(ErrorCode::Unsupported, "'marlin'", {{"checkpoint_format", "marlin"}});
  refused(ErrorCode::Unsupported, "'gptq_p'", {{"checkpoint_format", "gptq_p"}});
  refused(ErrorCode::Unsupported, "is_marlin_format", {{"is_marlin_format", true}});
  refused(ErrorCode::Unsupported, "pack_dtype 'int16'", {{"pack_dtype", "int16"}});
  refused(ErrorCode::InvalidArgument, "group_size 0", {{"group_size", 0}});
  refused(ErrorCode::InvalidArgument, "group_size -2", {{"group_size", -2}});
  refused(ErrorCode::InvalidArgument, "bits: expected an integer", {{"bits", "four"}});
}

TEST(Gptq, WriterRefusesZerosThatItsFormatCannotHold) {
  expect_error(ErrorCode::Unsupported, "write 'gptq_v2'", [] { write_gptq_v1(make_ramp(4, 0)); });
  expect_error(ErrorCode::Unsupported, "zero point 16", [] { write_gptq_v1(make_ramp(4, 16)); });
  expect_error(ErrorCode::Unsupported, "zero point 16", [] { write_gptq_v2(make_ramp(4, 16)); });
  EXPECT_NO_THROW(write_gptq_v1(make_ramp(4, 15)));
  EXPECT_NO_THROW(write_gptq_v2(make_ramp(4, 0)));
}

TEST(Gptq, WriterRefusesSizesThatPeersCannotLoad) {
  std::mt19937 random(1);
  const auto made =
      weights::make_random_grouped_int({.out_features = 8, .in_features = 64, .smallest_zero = 1}, random);
  expect_error(ErrorCode::Unsupported, "multiples of 32", [&] { write_gptq_v1(made.weights); });
}

TEST(Gptq, WriterRefusesScalesThatF16CannotHold) {
  for (const float bad : {1e5f, 1e-9f, 0.0f}) {
    GroupedIntWeights w = make_ramp(4, 8);
    w.scales = to_dtype(w.scales, DType::F32);
    w.scales.span<float>()[3] = bad;
    expect_error(ErrorCode::Unsupported, "a scale", [&] { write_gptq_v1(w); });
  }
}

TEST(Gptq, ConfigHasTheKeysPeersRead) {
  QuantizationConfig written;
  written.bits = 4;
  written.group_size = 64;
  written.sym = true;
  written.modules_to_not_convert = {"model.layers.0.mlp.down_proj"};
  written.raw = {{"damp_percent", 0.05}};
  const Json json = make_quantization_config("gptq_v2", written);
  EXPECT_EQ(json["quant_method"], "gptq");
  EXPECT_EQ(json["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(json["damp_percent"], 0.05);
  EXPECT_EQ(json["lm_head"], false);
  EXPECT_TRUE(json["dynamic"].contains(R"(-:^model\.layers\.0\.mlp\.down_proj$)"));
  const QuantizationConfig back = parse_gptq_config(json);
  EXPECT_EQ(back.bits, 4);
  EXPECT_EQ(back.group_size, 64);
  EXPECT_TRUE(back.sym);
  EXPECT_FALSE(back.desc_act);
}

}  // namespace
}  // namespace nibble::formats
