#include "formats/squeezellm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/expect_error.h"
#include "core/tensors_equal.h"
#include "formats/quantization_config.h"
#include "formats/raw_checkpoint.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::CodebookWeights;

Json config(std::int64_t bits = 4) {
  return {{"quant_method", "squeezellm"}, {"wbits", bits}};
}

/// Two outputs of eight inputs: codes 0…7 and 15…8, tables 0, 1, …, 15 and 0, 10, …, 150.
RawCheckpoint make_raw(const Json& quantization_config = config()) {
  RawCheckpoint raw(quantization_config);
  raw.add("m.qweight", std::vector<std::int32_t>{0x76543210, static_cast<std::int32_t>(0x89abcdefu)}, {1, 2});
  std::vector<float> table;
  for (int i = 0; i < 16; ++i) table.push_back(static_cast<float>(i));
  for (int i = 0; i < 16; ++i) table.push_back(static_cast<float>(10 * i));
  raw.add("m.lookup_table", table, {2, 16});
  return raw;
}

std::vector<float> plain_values() {
  return {0, 1, 2, 3, 4, 5, 6, 7, 150, 140, 130, 120, 110, 100, 90, 80};
}

std::vector<float> read(RawCheckpoint& raw) {
  return dequantized(raw.open().linear("m", {2, 8}));
}

void expect_refused(RawCheckpoint& raw, const std::string& part) {
  expect_error(ErrorCode::Corrupt, part, [&] { raw.open().linear("m", {2, 8}); });
}

TEST(SqueezeLlm, LooksCodesUpInTheTableOfTheirOutput) {
  RawCheckpoint raw = make_raw();
  EXPECT_EQ(read(raw), plain_values());
}

TEST(SqueezeLlm, Packs3BitsIntoTheGoldenWords) {
  CodebookWeights w;
  w.out_features = 1;
  w.in_features = 32;
  w.bits = 3;
  std::vector<std::uint8_t> row(32);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::uint8_t>(i % 8);
  w.codes = Tensor::empty(DType::U8, {1, 12});
  weights::pack_codes(row, 3, w.codes.span<std::uint8_t>());
  w.lookup_table = Tensor::zeros(DType::F16, {1, 8});
  const auto tensors = write_squeezellm(w);
  EXPECT_EQ(tensors[0].suffix, "qweight");
  EXPECT_EQ(words_of(tensors[0].tensor), (std::vector<std::uint32_t>{0x88fac688, 0xc688fac6, 0xfac688fa}));
}

TEST(SqueezeLlm, AddsSparseValuesAndIgnoresStartrows) {
  RawCheckpoint raw = make_raw();
  raw.add<std::int32_t>("m.rows", {0, 1, 3}, {3}).add<std::int32_t>("m.cols", {2, 0, 7}, {3});
  raw.add<float>("m.vals", {0.5f, -1, 2}, {3}).add<std::int32_t>("m.startrows", {99, -4}, {2});
  std::vector<float> expected = plain_values();
  expected[2] = 2.5f;
  expected[8] = 149;
  expected[15] = 82;
  EXPECT_EQ(read(raw), expected);
}

TEST(SqueezeLlm, AddsFullRowsOfHybridFilesBesideTheSparseValues) {
  RawCheckpoint raw = make_raw();
  raw.add<std::int32_t>("m.rows", {0, 1, 1}, {3}).add<std::int32_t>("m.cols", {2}, {1});
  raw.add<float>("m.vals", {0.5f}, {1});
  raw.add<float>("m.full_rows", {1, 0, 0, 0, 2, 0, 0, 3}, {8, 1}).add<std::int32_t>("m.full_row_indices", {1}, {1});
  std::vector<float> expected = plain_values();
  expected[2] = 2.5f;
  expected[8] += 1;
  expected[12] += 2;
  expected[15] += 3;
  EXPECT_EQ(read(raw), expected);
}

TEST(SqueezeLlm, ReadsFullRowsWithoutSparseValues) {
  RawCheckpoint raw = make_raw();
  raw.add<float>("m.full_rows", {1, 0, 0, 0, 0, 0, 0, 0}, {8, 1}).add<std::int32_t>("m.full_row_indices", {0}, {1});
  EXPECT_EQ(read(raw)[0], 1);
}

TEST(SqueezeLlm, TakesBitsFromTheTableWhereTheConfigSaysOtherwise) {
  RawCheckpoint raw = make_raw(config(3));
  EXPECT_EQ(read(raw), plain_values());
}

TEST(SqueezeLlm, RefusesBrokenTables) {
  RawCheckpoint narrow(config());
  narrow.add<std::int32_t>("m.qweight", {0, 0}, {1, 2}).add("m.lookup_table", std::vector<float>(24), {2, 12});
  expect_refused(narrow, "m.lookup_table: expected [2, 8] for 3 bits or [2, 16] for 4, found [2, 12]");

  RawCheckpoint other(config());
  other.add<std::int32_t>("m.qweight", {0, 0}, {1, 2}).add("m.lookup_table", std::vector<float>(48), {3, 16});
  expect_refused(other, "m.lookup_table");

  RawCheckpoint nan(config());
  std::vector<float> table(32);
  table[17] = std::nanf("");
  nan.add<std::int32_t>("m.qweight", {0, 0}, {1, 2}).add("m.lookup_table", table, {2, 16});
  expect_refused(nan, "m: lookup_table");

  RawCheckpoint integers(config());
  integers.add<std::int32_t>("m.qweight", {0, 0}, {1, 2}).add("m.lookup_table", std::vector<std::int32_t>(32), {2, 16});
  expect_refused(integers, "m.lookup_table: expected F16, BF16 or F32");
}

TEST(SqueezeLlm, RefusesBrokenSparseParts) {
  struct Case {
    std::vector<std::int32_t> rows;
    std::vector<std::int32_t> cols;
    const char* part;
  };
  const Case cases[] = {{{0, 2, 1}, {0, 1, 2}, "m: rows"},
                        {{0, 1, 4}, {0, 1, 2}, "m: rows"},
                        {{1, 1, 3}, {0, 1, 2}, "m: rows"},
                        {{0, 5, 3}, {0, 1, 2}, "m: rows"},
                        {{0, -1, 3}, {0, 1, 2}, "m: rows"},
                        {{0, 1, 3}, {0, 1, 8}, "m: cols: 8"},
                        {{0, 1, 3}, {0, -1, 2}, "m: cols: -1"},
                        {{0, 3}, {0, 1, 2}, "m.rows: expected I32 [3]"},
                        {{0, 1, 3}, {0, 1}, "m.cols: expected I32 [3]"}};
  for (const Case& c : cases) {
    RawCheckpoint raw = make_raw();
    raw.add("m.rows", c.rows, {static_cast<std::int64_t>(c.rows.size())});
    raw.add("m.cols", c.cols, {static_cast<std::int64_t>(c.cols.size())});
    raw.add<float>("m.vals", {1, 2, 3}, {3});
    // Full rows make the reader follow the CSR itself.
    raw.add<float>("m.full_rows", std::vector<float>(8, 1), {8, 1}).add<std::int32_t>("m.full_row_indices", {0}, {1});
    expect_refused(raw, c.part);
  }
  RawCheckpoint infinite = make_raw();
  infinite.add<std::int32_t>("m.rows", {0, 0, 1}, {3}).add<std::int32_t>("m.cols", {0}, {1});
  infinite.add<float>("m.vals", {std::numeric_limits<float>::infinity()}, {1});
  expect_refused(infinite, "m: vals");

  RawCheckpoint without_rows = make_raw();
  without_rows.add<std::int32_t>("m.cols", {0}, {1}).add<float>("m.vals", {1}, {1});
  expect_error(ErrorCode::NotFound, "m.rows", [&] { without_rows.open().linear("m", {2, 8}); });

  RawCheckpoint full = make_raw();
  full.add<float>("m.full_rows", std::vector<float>(8), {8, 1}).add<std::int32_t>("m.full_row_indices", {2}, {1});
  expect_refused(full, "m.full_row_indices: 2 is none of the 2 outputs");
}

TEST(SqueezeLlm, RefusesInputsThatDoNotFillWords) {
  std::mt19937 random(1);
  const CodebookWeights w = weights::make_random_codebook({.in_features = 40, .bits = 3}, random);
  expect_error(ErrorCode::Unsupported, "packs 32 inputs together at 3 bits, which 40", [&] { write_squeezellm(w); });
}

TEST(SqueezeLlm, RefusesOtherWidths) {
  expect_error(ErrorCode::Unsupported, "wbits 2", [] { parse_squeezellm_config({{"wbits", 2}}); });
}

TEST(SqueezeLlm, WritesTheConfigThatOldLoadersRead) {
  QuantizationConfig quantization;
  quantization.bits = 3;
  quantization.raw = {{"sparsity", 0.0045}};
  const Json written = make_quantization_config("squeezellm", quantization);
  EXPECT_EQ(written["quant_method"], "squeezellm");
  EXPECT_EQ(written["wbits"], 3);
  EXPECT_EQ(written["include_sparse"], true);
  EXPECT_EQ(written["modules_to_not_convert"], Json({"lm_head"}));
  const auto files = make_quantization_side_files("squeezellm", quantization);
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].first, "quant_config.json");
  EXPECT_EQ(Json::parse(files[0].second), (Json{{"wbits", 3}}));
}

TEST(SqueezeLlm, WrittenLinearsReadBackAsTheSameNumbers) {
  std::mt19937 random(2);
  for (int round = 0; round < 24; ++round) {
    weights::CodebookShape shape;
    shape.out_features = 1 + static_cast<std::int64_t>(random() % 40);
    shape.in_features = 32 * (1 + static_cast<std::int64_t>(random() % 6));
    shape.bits = round % 2 == 0 ? 3 : 4;
    shape.sparsity = round % 3 == 0 ? 0 : 0.05;
    shape.table_dtype = round % 4 < 2 ? DType::F16 : DType::F32;
    const CodebookWeights written = weights::make_random_codebook(shape, random);
    const TemporaryFolder folder;
    CheckpointWriter writer(folder / "m");
    QuantizationConfig quantization;
    quantization.bits = shape.bits;
    std::vector<NamedTensor> tensors = write_squeezellm(written);
    for (const NamedTensor& named : tensors) writer.add("m." + named.suffix, named.tensor);
    writer.finish({Json{{"quantization_config", make_quantization_config("squeezellm", quantization)}}, {}});
    const auto linear = Checkpoint::open(folder / "m")->linear("m", {shape.out_features, shape.in_features});
    const auto& read = std::get<CodebookWeights>(linear);
    EXPECT_EQ(read.bits, written.bits);
    EXPECT_TRUE(equal(read.codes, written.codes));
    EXPECT_TRUE(equal(read.lookup_table, written.lookup_table));
    EXPECT_TRUE(read.rows.is_empty() ? written.rows.is_empty() : equal(read.rows, written.rows));
    EXPECT_TRUE(read.cols.is_empty() ? written.cols.is_empty() : equal(read.cols, written.cols));
    EXPECT_TRUE(read.vals.is_empty() ? written.vals.is_empty() : equal(read.vals, written.vals));
  }
}

}  // namespace
}  // namespace nibble::formats
