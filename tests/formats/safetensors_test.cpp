#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "core/expect_error.h"
#include "core/temporary_folder.h"

namespace nibble::formats {
namespace {

/// A file of this header and `data_bytes` of data.
std::string file_of(std::string header, std::size_t data_bytes) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, '\x01');
}

TensorHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)));
}

void expect_corrupt(const std::string& file, const std::string& part) {
  expect_error(ErrorCode::Corrupt, part, [&] { parse(file); });
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TEST(Safetensors, ListsTensorsWithTypeShapeAndPlace) {
  const std::string header =
      "{" + tensor("b", "F16", "[2,3]", "[4,16]") + "," + tensor("a", "I32", "[]", "[0,4]") + "}";
  const TensorHeader parsed = parse(file_of(header, 16));
  ASSERT_EQ(parsed.size(), 2u);
  EXPECT_EQ(parsed.at("b").dtype, DType::F16);
  EXPECT_EQ(parsed.at("b").sizes, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(parsed.at("b").begin, 8 + header.size() + 4);
  EXPECT_EQ(parsed.at("a").end, 8 + header.size() + 4);
}

TEST(Safetensors, AcceptsMetadataEmptyTensorsAndTrailingSpaces) {
  const std::string header = R"({"__metadata__":{"format":"pt"},)" + tensor("e", "F32", "[0,7]", "[0,0]") + "," +
                             tensor("x", "U8", "[3]", "[0,3]") + "}      ";
  EXPECT_EQ(parse(file_of(header, 3)).size(), 2u);
}

TEST(Safetensors, AcceptsTypesItHasNoUseFor) {
  const TensorHeader parsed = parse(file_of("{" + tensor("m", "BOOL", "[4]", "[0,4]") + "}", 4));
  EXPECT_FALSE(parsed.at("m").dtype.has_value());
}

TEST(Safetensors, RefusesHeaderLengths) {
  expect_corrupt("", "too few");
  expect_corrupt("1234567", "too few");
  expect_corrupt(file_of("", 0), "does not begin with '{'");
  std::string huge = file_of("{}", 0);
  std::memset(huge.data(), 0x7f, 8);
  expect_corrupt(huge, "100 MB");
  const std::uint64_t past_end = 3;
  std::memcpy(huge.data(), &past_end, 8);
  expect_corrupt(huge, "past the end");
  const std::uint64_t above_limit = 101'000'000;
  std::memcpy(huge.data(), &above_limit, 8);
  expect_corrupt(huge, "100 MB");
}

TEST(Safetensors, RefusesHeadersThatAreNotJsonObjects) {
  expect_corrupt(file_of("[1]", 0), "does not begin with '{'");
  expect_corrupt(file_of(" {}", 0), "does not begin with '{'");
  expect_corrupt(file_of("{", 0), "not valid JSON");
  expect_corrupt(file_of("{} x", 0), "not valid JSON");
  expect_corrupt(file_of(std::string("{}\0", 3), 0), "not valid JSON");
  expect_corrupt(file_of("{\"\xff\":1}", 0), "not valid JSON");
  expect_corrupt(file_of(R"({"a":1})", 0), "a: ");
  expect_corrupt(file_of(R"({"a":)" + std::string(100'000, '[') + "}", 0), "not valid JSON");
  expect_corrupt(file_of(R"({"__metadata__":{"n":1}})", 0), "not a string");
}

TEST(Safetensors, RefusesDuplicateNamesAndFields) {
  const std::string a = tensor("a", "U8", "[1]", "[0,1]");
  expect_corrupt(file_of("{" + a + "," + a + "}", 1), "a: stands twice");
  expect_corrupt(file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "each once");
  expect_corrupt(file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), "twice");
}

TEST(Safetensors, RefusesWrongPlaces) {
  expect_corrupt(file_of("{" + tensor("a", "U8", "[2]", "[0,2]") + "," + tensor("b", "U8", "[2]", "[1,3]") + "}", 3),
                 "overlap");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "U8", "[1]", "[2,3]") + "}", 3),
                 "hole");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[1,2]") + "}", 2), "hole");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "U8", "[0]", "[0,0]") + "," +
                             tensor("c", "U8", "[0]", "[3,3]") + "}",
                         3),
                 "hole");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[0,1]") + "}", 2), "the file at");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[1,0]") + "}", 1), "outside");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[2]", "[0,2]") + "}", 1), "outside");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[1]", "[0,1,2]") + "}", 1), "each once");
  expect_corrupt(file_of("{}", 1), "the file at");
}

TEST(Safetensors, RefusesWrongShapesAndTypes) {
  expect_corrupt(file_of("{" + tensor("a", "F16", "[1]", "[0,1]") + "}", 1), "takes 2 bytes");
  expect_corrupt(file_of("{" + tensor("a", "F16", "[-1]", "[0,2]") + "}", 2), "shape");
  expect_corrupt(file_of("{" + tensor("a", "F16", "[1.0]", "[0,2]") + "}", 2), "shape");
  expect_corrupt(file_of("{" + tensor("a", "F16", "[18446744073709551615]", "[0,2]") + "}", 2), "too large");
  expect_corrupt(file_of("{" + tensor("a", "U8", "[4294967296,4294967296]", "[0,2]") + "}", 2), "overflow");
  expect_corrupt(file_of("{" + tensor("a", "F17", "[1]", "[0,2]") + "}", 2), "unknown dtype 'F17'");
  expect_corrupt(file_of("{" + tensor("a", "F4", "[3]", "[0,1]") + "}", 1), "whole bytes");
}

TEST(Safetensors, NamesGitLfsPointers) {
  const TemporaryFolder folder;
  const auto path =
      folder.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  expect_error(ErrorCode::Corrupt, "model.safetensors: is a git-lfs pointer", [&] { open_safetensors(path); });
}

TEST(Safetensors, ReadsBackWhatAShardWrote) {
  const TemporaryFolder folder;
  const float values[6] = {1, -2, 3.5f, 0, 1e-30f, 65504};
  {
    SafetensorsShard shard(folder / "s.safetensors");
    shard.add("odd \"name\"\n", {values, DType::F32, {2, 3}});
    shard.add("strided", {values, DType::F32, {2, 2}, 3, {}});
    shard.seal();
    EXPECT_FALSE(std::filesystem::exists(folder / "s.safetensors"));
    shard.commit_as(folder / "t.safetensors");
  }
  const TensorFile file = open_safetensors(folder / "t.safetensors");
  const auto whole = file.bytes(file.header().at("odd \"name\"\n"));
  EXPECT_EQ(std::memcmp(whole.data(), values, sizeof(values)), 0);
  const auto strided = file.bytes(file.header().at("strided"));
  ASSERT_EQ(strided.size(), 16u);
  EXPECT_EQ(std::memcmp(strided.data() + 8, values + 3, 8), 0);
}

TEST(Safetensors, ShardRefusesWhatWouldStandUnaligned) {
  const TemporaryFolder folder;
  SafetensorsShard shard(folder / "s.safetensors");
  const std::uint8_t byte = 1;
  shard.add("a", {&byte, DType::U8, {1}});
  EXPECT_TRUE(shard.has_room_for("b", DType::U8));
  EXPECT_FALSE(shard.has_room_for("b", DType::F16));
}

}  // namespace
}  // namespace nibble::formats
