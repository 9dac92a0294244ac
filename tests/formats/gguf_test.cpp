#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "core/expect_error.h"
#include "formats/gguf_builder.h"

namespace nibble::formats {
namespace {

GgufFile parse(const std::string& file) {
  return GgufFile::parse(std::as_bytes(std::span(file)));
}

void expect_refused(ErrorCode code, const std::string& part, const std::string& file) {
  expect_error(code, part, [&] { parse(file); });
}

std::string little_endian(std::uint64_t value, int num_bytes) {
  return {reinterpret_cast<const char*>(&value), static_cast<std::size_t>(num_bytes)};
}

TEST(Gguf, ReadsMetadataOfEveryType) {
  GgufBuilder builder;
  builder.number("u8", 0, std::uint8_t{200}).number("i8", 1, std::int8_t{-3}).number("u16", 2, std::uint16_t{65000});
  builder.number("i16", 3, std::int16_t{-300}).u32("u32", 4'000'000'000u).number("i32", 5, std::int32_t{-7});
  builder.f32("f32", 1e-5f).boolean("bool", true).string("string", "hä").number("u64", 10, std::uint64_t{1} << 40);
  builder.number("i64", 11, std::int64_t{-1}).number("f64", 12, 0.25);
  builder.strings("words", {"a", "", "c"}).numbers<std::int32_t>("types", {1, 3});
  const std::string file = builder.build();
  const GgufFile parsed = parse(file);
  EXPECT_EQ(parsed.integer("u8"), 200);
  EXPECT_EQ(parsed.integer("i8"), -3);
  EXPECT_EQ(parsed.integer("u16"), 65000);
  EXPECT_EQ(parsed.integer("i16"), -300);
  EXPECT_EQ(parsed.integer("u32"), 4'000'000'000);
  EXPECT_EQ(parsed.integer("i32"), -7);
  EXPECT_EQ(parsed.number("f32"), 1e-05);  // not 9.99999974e-06
  EXPECT_EQ(parsed.boolean("bool"), true);
  EXPECT_EQ(parsed.string("string"), "hä");
  EXPECT_EQ(parsed.integer("u64"), std::int64_t{1} << 40);
  EXPECT_EQ(parsed.integer("i64"), -1);
  EXPECT_EQ(parsed.number("f64"), 0.25);
  EXPECT_EQ(parsed.array("words")->strings.size(), 3u);
  EXPECT_EQ(parsed.array("types")->numbers[1], 3);
  EXPECT_EQ(parsed.string("absent"), std::nullopt);
  EXPECT_EQ(parsed.array("absent"), nullptr);
  expect_error(ErrorCode::Corrupt, "string: expected an integer", [&] { (void)parsed.integer("string"); });
  expect_error(ErrorCode::Corrupt, "u8: expected a string", [&] { (void)parsed.string("u8"); });
  expect_error(ErrorCode::Corrupt, "u8: expected an array", [&] { (void)parsed.array("u8"); });
}

TEST(Gguf, RefusesStringsThatAreNotUtf8AndNumbersThatAreNotFinite) {
  const std::string file = GgufBuilder().string("s", "a\xff").f32("n", NAN).number("i", 12, double{INFINITY}).build();
  const GgufFile parsed = parse(file);
  expect_error(ErrorCode::Corrupt, "s: not valid UTF-8", [&] { (void)parsed.string("s"); });
  expect_error(ErrorCode::Corrupt, "n: expected a finite number", [&] { (void)parsed.number("n"); });
  expect_error(ErrorCode::Corrupt, "i: expected a finite number", [&] { (void)parsed.number("i"); });
}

TEST(Gguf, ReadsTensorsWithReversedSizes) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBuilder builder;
    builder.version = version;
    builder.u32("general.alignment", 64).alignment = 64;
    builder.floats("a", {3, 2}, {1, 2, 3, 4, 5, 6}).floats("b", {1}, {7});
    const std::string file = builder.build();
    const GgufFile parsed = parse(file);
    EXPECT_EQ(parsed.tensors().at("a").shape, Shape({2, 3}));
    float value = 0;
    std::memcpy(&value, parsed.tensors().at("b").bytes.data(), 4);
    EXPECT_EQ(value, 7);
  }
}

TEST(Gguf, RefusesOtherMagicsAndVersions) {
  expect_refused(ErrorCode::Corrupt, "ends at byte 0", "");
  expect_refused(ErrorCode::Corrupt, "not a GGUF file", "GGML" + std::string(40, '\0'));
  expect_refused(ErrorCode::Corrupt, "ends at byte", "GGUF");
  GgufBuilder builder;
  for (const std::uint32_t version : {0u, 1u, 4u, 1000u}) {
    builder.version = version;
    expect_refused(ErrorCode::Unsupported, "GGUF version " + std::to_string(version), builder.build());
  }
  builder.version = 0x03000000;
  expect_refused(ErrorCode::Unsupported, "big-endian", builder.build());
}

TEST(Gguf, RefusesCountsAboveTheFile) {
  const std::string preamble = "GGUF" + little_endian(3, 4);
  for (const std::uint64_t count : {std::uint64_t{1}, std::uint64_t{1} << 40, UINT64_MAX}) {
    expect_refused(ErrorCode::Corrupt, "do not fit",
                   preamble + little_endian(0, 8) + little_endian(count, 8) + std::string(8, '\0'));
    expect_refused(ErrorCode::Corrupt, "do not fit",
                   preamble + little_endian(count, 8) + little_endian(0, 8) + std::string(8, '\0'));
  }
}

TEST(Gguf, RefusesBrokenMetadata) {
  const auto with = [](const std::string& bytes) { return GgufBuilder().raw_metadata(bytes, 1).build(); };
  const std::string key = little_endian(1, 8) + "k";
  const std::string rest(64, '\0');
  expect_refused(ErrorCode::Corrupt, "more bytes were expected", with(little_endian(UINT64_MAX, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "impossible length", with(little_endian(0, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "k: metadata of unknown type 13", with(key + little_endian(13, 4) + rest));
  expect_refused(ErrorCode::Corrupt, "k: the file ends",
                 with(key + little_endian(8, 4) + little_endian(UINT64_MAX, 8) + rest));
  const std::string array = key + little_endian(9, 4);
  expect_refused(ErrorCode::Corrupt, "an array of 18446744073709551615 elements",
                 with(array + little_endian(4, 4) + little_endian(UINT64_MAX, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "goes past the end",
                 with(array + little_endian(8, 4) + little_endian(100, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "arrays of arrays",
                 with(array + little_endian(9, 4) + little_endian(1, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "unknown type 99",
                 with(array + little_endian(99, 4) + little_endian(1, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "k: 18446744073709551615 is too large",
                 with(key + little_endian(10, 4) + little_endian(UINT64_MAX, 8) + rest));
  expect_refused(ErrorCode::Corrupt, "k: stands twice", GgufBuilder().u32("k", 1).u32("k", 1).build());
}

TEST(Gguf, RefusesImpossibleAlignments) {
  for (const std::uint32_t alignment : {0u, 1u, 4u, 24u, 1u << 30}) {
    expect_refused(ErrorCode::Corrupt, "general.alignment " + std::to_string(alignment),
                   GgufBuilder().u32("general.alignment", alignment).floats("a", {1}, {1}).build());
  }
}

TEST(Gguf, RefusesImpossibleTensors) {
  const auto with = [](const std::vector<std::uint64_t>& sizes, std::uint32_t type, std::uint64_t offset = 0) {
    return GgufBuilder().tensor_at("t", sizes, type, offset, std::string(64, '\0')).build();
  };
  EXPECT_NO_THROW(parse(with({16}, 0)));
  expect_refused(ErrorCode::Corrupt, "t: 0 dimensions", with({}, 0) + std::string(64, '\0'));
  expect_refused(ErrorCode::Corrupt, "t: 5 dimensions", with({1, 1, 1, 1, 1}, 0));
  expect_refused(ErrorCode::Corrupt, "t: a size of 0", with({0}, 0));
  expect_refused(ErrorCode::Corrupt, "t: a size of", with({std::uint64_t{1} << 63}, 0));
  expect_refused(ErrorCode::Corrupt, "t: size overflow", with({std::uint64_t{1} << 40, std::uint64_t{1} << 40}, 0));
  expect_refused(ErrorCode::Corrupt, "t: size overflow", with({std::uint64_t{1} << 61}, 0));
  expect_refused(ErrorCode::Corrupt, "t: rows of 33 do not fill Q8_0's blocks", with({33}, 8));
  expect_refused(ErrorCode::Unsupported, "t: GGUF type 19", with({32}, 19));
  expect_refused(ErrorCode::Corrupt, "t: offset 8 is not aligned", with({4}, 0, 8));
  expect_refused(ErrorCode::Corrupt, "t: 64 bytes at offset 32 go past the end", with({16}, 0, 32));
  expect_refused(ErrorCode::Corrupt, "t: 64 bytes at offset 18446744073709551584", with({16}, 0, UINT64_MAX - 31));
  expect_refused(ErrorCode::Corrupt, "b: overlaps",
                 GgufBuilder().floats("a", {16}, std::vector<float>(16)).tensor_at("b", {8}, 0, 32, "").build());
  expect_refused(ErrorCode::Corrupt, "a: ",
                 GgufBuilder().floats("a", {8}, std::vector<float>(8)).floats("a", {8}, std::vector<float>(8)).build());
}

TEST(Gguf, RefusesTheFileCutAnywhere) {
  GgufBuilder builder;
  builder.string("general.architecture", "llama").strings("tokens", {"a", "b"}).f32("eps", 1e-5f);
  builder.floats("a", {3, 2}, {1, 2, 3, 4, 5, 6});
  const std::string file = builder.build();
  EXPECT_NO_THROW(parse(file));
  for (std::size_t length = 0; length < file.size(); ++length) {
    EXPECT_THROW(parse(file.substr(0, length)), Error) << length;
  }
}

}  // namespace
}  // namespace nibble::formats
