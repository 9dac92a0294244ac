#include "core/json.h"

#include <gtest/gtest.h>

#include <string>

#include "core/expect_error.h"
#include "core/temporary_folder.h"

namespace nibble {
namespace {

TEST(Json, KeepsOrderAndLetsTheLastDuplicateWin) {
  const Json json = parse_json(R"({"z": 1, "a": 2, "z": 3})", "test");
  EXPECT_EQ(json.begin().key(), "z");
  EXPECT_EQ(json["z"], 3);
}

TEST(Json, ErrorsNameTheSourceAndWhatIsWrong) {
  for (const char* text :
       {"", "{", "{\"a\": 1,}", "nan", "{'a': 1}", "[1 2]", "{} x", "\"\xff\"", "\"\\ud800\"", "1e999"}) {
    expect_error(ErrorCode::InvalidArgument, "config.json: not valid JSON", [&] { parse_json(text, "config.json"); });
  }
}

TEST(Json, LimitsDepthAndKeys) {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(256), "test"));
  expect_error(ErrorCode::InvalidArgument, "nested deeper than 256", [&] { parse_json(nested(300), "test"); });
  expect_error(ErrorCode::InvalidArgument, "nested deeper", [&] { parse_json(std::string(1'000'000, '['), "test"); });
  expect_error(ErrorCode::InvalidArgument, "more than 2 keys",
               [&] { parse_json(R"({"a":1,"b":2,"c":3})", "test", {.max_depth = 8, .max_object_keys = 2}); });
  EXPECT_NO_THROW(
      parse_json(R"({"a":{"x":1,"y":1},"b":{"x":1,"y":1}})", "test", {.max_depth = 8, .max_object_keys = 2}));
}

TEST(Json, ReadsEveryKindOfValue) {
  const std::string text = R"({"a":[{},[],null,true,-1,18446744073709551615,1.5,"x"],"b":{"c":{"d":[[1]]}}})";
  EXPECT_EQ(parse_json(text, "test").dump(), text);
  EXPECT_EQ(parse_json("7", "test"), 7);
  EXPECT_EQ(parse_json(R"({"k": {"a": 1}, "k": [2]})", "test"), Json({{"k", {2}}}));
}

/// With quadratic work this test takes an hour.
TEST(Json, LongArraysOfObjectsTakeLinearTime) {
  constexpr std::size_t kNumObjects = 1'000'000;
  std::string text = "[{}";
  for (std::size_t i = 1; i < kNumObjects; ++i) text += ",{}";
  EXPECT_EQ(parse_json(text + "]", "test").size(), kNumObjects);
}

TEST(Json, FieldsAreCheckedByTypeAndNamed) {
  const Json json = parse_json(R"({"n": 3, "f": 2.5, "w": 64.0, "s": "x", "b": true, "null": null, "l": ["a", "b"],
                                   "mixed": ["a", 1], "big": 18446744073709551615})",
                               "test");
  EXPECT_EQ(get<std::int64_t>(json, "n"), 3);
  EXPECT_EQ(get<std::int64_t>(json, "w"), 64);
  EXPECT_EQ(get<double>(json, "n"), 3.0);
  EXPECT_EQ(get<std::string>(json, "s"), "x");
  EXPECT_EQ(get<std::vector<std::string>>(json, "l"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(get_optional<std::int64_t>(json, "null"), std::nullopt);
  EXPECT_EQ(get_or<bool>(json, "absent", true), true);
  expect_error(ErrorCode::InvalidArgument, "absent: missing", [&] { get<bool>(json, "absent"); });
  expect_error(ErrorCode::InvalidArgument, "f: expected an integer, found 2.5", [&] { get<std::int64_t>(json, "f"); });
  expect_error(ErrorCode::InvalidArgument, "big: expected an integer", [&] { get<std::int64_t>(json, "big"); });
  expect_error(ErrorCode::InvalidArgument, "n: expected a string", [&] { get<std::string>(json, "n"); });
  expect_error(ErrorCode::InvalidArgument, "n: expected a boolean", [&] { get_or<bool>(json, "n", false); });
  expect_error(ErrorCode::InvalidArgument, "mixed: expected an array",
               [&] { get<std::vector<std::string>>(json, "mixed"); });
}

TEST(Json, FilesComeBack) {
  const TemporaryFolder folder;
  const Json json{{"b", 1}, {"a", {1.5, "é"}}};
  write_json_file(folder / "j.json", json);
  EXPECT_EQ(read_json_file(folder / "j.json"), json);
  EXPECT_TRUE(read_text_file(folder / "j.json").ends_with("}\n"));
}

}  // namespace
}  // namespace nibble
