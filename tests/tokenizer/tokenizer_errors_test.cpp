// robustness.md 56: tokenizer.json corrupt, merges of absent tokens, id gaps, duplicate ids, added tokens beyond.
#include <functional>

#include "core/expect_error.h"
#include "tokenizer/small_tokenizers.h"

namespace nibble::tokenizer {
namespace {

using testing::ElementsAre;

void expect_refused(ErrorCode code, const std::string& part, const std::function<void(Json&)>& damage) {
  Json json = byte_level_json();
  damage(json);
  expect_error(code, part, [&] { make_tokenizer(json); });
}

TEST(TokenizerErrors, SaysThatTextIsNotJson) {
  for (const char* text : {"", "{", "nul", "[1,]", "\xFF", R"({"a": "\ud800"})"}) {
    expect_error(ErrorCode::Corrupt, "tokenizer.json: not valid JSON", [&] { Tokenizer::from_json(text); });
  }
  expect_error(ErrorCode::Corrupt, "is not a JSON object", [] { Tokenizer::from_json("[]"); });
  expect_error(ErrorCode::Corrupt, "not valid JSON", [] { Tokenizer::from_json(std::string(100'000, '[')); });
}

TEST(TokenizerErrors, NamesTheComponentItDoesNotRead) {
  const Json sentencepiece_normalizer = {{"type", "Precompiled"}, {"precompiled_charsmap", ""}};
  expect_refused(ErrorCode::Unsupported, R"(normalizer is of type "Precompiled")",
                 [&](Json& json) { json["normalizer"] = sentencepiece_normalizer; });
  expect_refused(ErrorCode::Unsupported, R"(normalizer[1] is of type "Precompiled")", [&](Json& json) {
    json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, sentencepiece_normalizer}}};
  });
  expect_refused(ErrorCode::Unsupported, R"(pre_tokenizer is of type "UnicodeScripts")",
                 [](Json& json) { json["pre_tokenizer"] = {{"type", "UnicodeScripts"}}; });
  expect_refused(ErrorCode::Unsupported, R"(post_processor is of type "Other")",
                 [](Json& json) { json["post_processor"] = {{"type", "Other"}}; });
  expect_refused(ErrorCode::Unsupported, R"(decoder is of type "CTC")",
                 [](Json& json) { json["decoder"] = {{"type", "CTC"}}; });
  expect_refused(ErrorCode::Unsupported, R"(model is of type "Unigram")",
                 [](Json& json) { json["model"]["type"] = "Unigram"; });
}

TEST(TokenizerErrors, NamesTheOptionItDoesNotRead) {
  expect_refused(ErrorCode::Unsupported, "dropout", [](Json& json) { json["model"]["dropout"] = 0.1; });
  expect_refused(ErrorCode::Unsupported, "end_of_word_suffix",
                 [](Json& json) { json["model"]["end_of_word_suffix"] = "</w>"; });
  expect_refused(ErrorCode::Unsupported, "version", [](Json& json) { json["version"] = "2.0"; });
  expect_refused(ErrorCode::Unsupported, "follows a decoder that joins tokens", [](Json& json) {
    json["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "Fuse"}}, {{"type", "ByteLevel"}}}}};
  });
}

TEST(TokenizerErrors, NamesTheMergeOfATokenThatIsAbsent) {
  expect_refused(ErrorCode::Corrupt, R"(needs token "nope")",
                 [](Json& json) { json["model"]["merges"].push_back("nope h"); });
  expect_refused(ErrorCode::Corrupt, R"(needs token "hz")",
                 [](Json& json) { json["model"]["merges"].push_back("h z"); });
  expect_refused(ErrorCode::Corrupt, "merge 5 is neither",
                 [](Json& json) { json["model"]["merges"].push_back("a b c"); });
  expect_refused(ErrorCode::Corrupt, "merge 5 is neither",
                 [](Json& json) { json["model"]["merges"].push_back(Json::array({"a"})); });
}

TEST(TokenizerErrors, RefusesIdsThatAreNone) {
  expect_refused(ErrorCode::Corrupt, R"(token "h" has id -1)", [](Json& json) { json["model"]["vocab"]["h"] = -1; });
  expect_refused(ErrorCode::Corrupt, R"(token "h" has id 4294967296)",
                 [](Json& json) { json["model"]["vocab"]["h"] = 4294967296; });
  expect_refused(ErrorCode::Corrupt, R"(the id of "h" is not an integer)",
                 [](Json& json) { json["model"]["vocab"]["h"] = "0"; });
  expect_refused(ErrorCode::Corrupt, "token id",
                 [](Json& json) { json["post_processor"]["special_tokens"]["<s>"]["ids"] = {-5}; });
}

TEST(TokenizerErrors, NamesTheMissingField) {
  expect_refused(ErrorCode::Corrupt, R"(lacks "model")", [](Json& json) { json.erase("model"); });
  expect_refused(ErrorCode::Corrupt, R"(no object "vocab")", [](Json& json) { json["model"].erase("vocab"); });
  expect_refused(ErrorCode::Corrupt, R"(model lacks "merges")", [](Json& json) { json["model"].erase("merges"); });
  expect_refused(ErrorCode::Corrupt, R"(added_tokens[0] lacks "special")",
                 [](Json& json) { json["added_tokens"][0].erase("special"); });
  expect_refused(ErrorCode::Corrupt, R"(post_processor.special_tokens lacks "<s>")",
                 [](Json& json) { json["post_processor"]["special_tokens"].erase("<s>"); });
  expect_error(ErrorCode::Corrupt, "tokenizer_config.json: \"eos_token\"",
               [] { make_tokenizer(byte_level_json(), {{"eos_token", 5}}); });
}

// What Hugging Face reads as well, read as there.
TEST(TokenizerErrors, ReadsGapsAndDuplicatesOfIds) {
  Json json = byte_level_json();
  json["model"]["vocab"]["gap"] = 5000;
  EXPECT_EQ(make_tokenizer(json)->vocab_size(), 5001);
  EXPECT_EQ(make_tokenizer(json)->id_to_token(4999), "");
  EXPECT_EQ(make_tokenizer(json)->decode({4999, 'a'}), "a");

  json = byte_level_json();
  json["model"]["vocab"]["same"] = 'h';
  EXPECT_EQ(make_tokenizer(json)->token_id("same"), 'h');
}

TEST(TokenizerErrors, GivesAddedTokensBeyondTheVocabularyTheNextIds) {
  Json json = byte_level_json();
  json["added_tokens"] = {added_token(1'000'000'000, "<far>"), added_token(0, "<near>")};
  const auto tokenizer = make_tokenizer(json);
  EXPECT_THAT(tokenizer->encode("<far><near>", false), ElementsAre(261, 262));
}

TEST(TokenizerErrors, StopsAPatternThatBacktracksWithoutEnd) {
  Json json = byte_level_json();
  json["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const auto tokenizer = make_tokenizer(json);
  expect_error(ErrorCode::InvalidArgument, "(a+)+$", [&] { tokenizer->encode(std::string(5000, 'a') + "b"); });
}

TEST(TokenizerErrors, RefusesPatternsThatCannotBeCompiled) {
  for (const std::string& pattern :
       {std::string("("), std::string("[z-a]"), std::string(100'000, '('), std::string("(?:a{1,60000}){1,60000}"),
        std::string("[a[bc]]"), std::string("[a&&b]"), std::string("(*LIMIT_MATCH=1)a"),
        std::string("\\p{Nonsense}")}) {
    expect_refused(ErrorCode::Unsupported, "pattern", [&](Json& json) {
      json["pre_tokenizer"] = {
          {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    });
  }
}

}  // namespace
}  // namespace nibble::tokenizer
