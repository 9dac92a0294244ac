#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tokenizer/small_tokenizers.h"

namespace nibble::tokenizer {
namespace {

using testing::ElementsAre;
using Ids = std::vector<std::int32_t>;

TEST(Tokenizer, MergesByRankAndPutsBosInFront) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_THAT(tokenizer->encode("hello world"), ElementsAre(261, 259, 260, 'o', 'r', 'l', 'd'));
  EXPECT_THAT(tokenizer->encode("hell", false), ElementsAre(258));
  EXPECT_THAT(tokenizer->encode(""), ElementsAre(261));
}

TEST(Tokenizer, FindsSpecialTokensOnlyWhereTheyMayBeParsed) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_THAT(tokenizer->encode("</s>h", false), ElementsAre(262, 'h'));
  EXPECT_THAT(tokenizer->encode("</s>h", false, SpecialTokens::AsText), ElementsAre('<', '/', 's', '>', 'h'));
  // Tokens that are not special stay tokens: they end nothing.
  EXPECT_THAT(tokenizer->encode("<tool>", false, SpecialTokens::AsText), ElementsAre(263));
}

TEST(Tokenizer, RepairsInvalidUtf8InText) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_THAT(tokenizer->encode("a\xFF", false), ElementsAre('a', 0xEF, 0xBF, 0xBD));
}

TEST(Tokenizer, DecodesWithoutSpecialTokensAndUnknownIds) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_EQ(tokenizer->decode({261, 259, 9999, -1, 262}), "hello");
  EXPECT_EQ(tokenizer->decode({261, 259, 262}, false), "<s>hello</s>");
  EXPECT_EQ(tokenizer->decode({'a', 0xE4, 0xBD, 'b'}), "a\uFFFDb");
}

TEST(Tokenizer, AnswersAboutItsTokens) {
  const auto tokenizer =
      make_tokenizer(byte_level_json(), {{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}});
  EXPECT_EQ(tokenizer->vocab_size(), 264);
  EXPECT_EQ(tokenizer->token_id("<s>"), 261);
  EXPECT_EQ(tokenizer->token_id("Ġw"), 260);
  EXPECT_EQ(tokenizer->token_id("absent"), std::nullopt);
  EXPECT_EQ(tokenizer->id_to_token(260), "Ġw");
  EXPECT_EQ(tokenizer->token_bytes(260), " w");
  EXPECT_EQ(tokenizer->token_bytes(0xFF), "\xFF");
  EXPECT_EQ(tokenizer->token_bytes(264), "");
  EXPECT_TRUE(tokenizer->is_special(261));
  EXPECT_FALSE(tokenizer->is_special(263));
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_EQ(tokenizer->bos_token_id(), 261);
  EXPECT_EQ(tokenizer->eos_token_id(), 262);
  EXPECT_EQ(tokenizer->eos_token(), "</s>");
  EXPECT_EQ(make_tokenizer(byte_level_json())->bos_token_id(), std::nullopt);
}

TEST(Tokenizer, KeepsAWholePieceWhereMergesAreIgnored) {
  Json json = byte_level_json();
  json["model"]["vocab"]["xyz"] = 261;
  json["added_tokens"] = Json::array();
  json["post_processor"] = nullptr;
  EXPECT_THAT(make_tokenizer(json)->encode("xyz"), ElementsAre('x', 'y', 'z'));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(make_tokenizer(json)->encode("xyz"), ElementsAre(261));
}

TEST(Tokenizer, WritesUnknownCharactersAsByteTokens) {
  const auto tokenizer = make_tokenizer(sentencepiece_json());
  EXPECT_THAT(tokenizer->encode("hi é"), ElementsAre(263, 259, 3 + 0xC3, 3 + 0xA9));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("hi é hi")), "hi é hi");
}

TEST(Tokenizer, KeepsWholeCharactersOfARunOfByteTokensThatIsCutOff) {
  const auto tokenizer = make_tokenizer(sentencepiece_json());
  const Ids run = {3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xE5, 3 + 0xA5};  // 你 and two thirds of 好
  EXPECT_EQ(tokenizer->decode(run), "你\uFFFD");
}

TEST(Tokenizer, GivesEveryThreadTheSameTokens) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  std::string text;
  for (int i = 0; i < 500; ++i) text += "hello world " + std::to_string(i);
  const Ids expected = tokenizer->encode(text);
  std::vector<Ids> results(4);
  {
    std::vector<std::jthread> threads;
    for (Ids& result : results) threads.emplace_back([&] { result = tokenizer->encode(text); });
  }
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace nibble::tokenizer
