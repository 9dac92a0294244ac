#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tokenizer/small_tokenizers.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

using Ids = std::vector<std::int32_t>;

std::vector<std::string> pieces(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens = true) {
  IncrementalDecoder decoder(tokenizer, skip_special_tokens);
  std::vector<std::string> texts;
  for (const std::int32_t id : ids) texts.push_back(decoder.add(id));
  texts.push_back(decoder.finish());
  return texts;
}

TEST(IncrementalDecoder, HoldsTheBytesOfACharacterUntilItIsWhole) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_THAT(pieces(*tokenizer, {'a', 0xF0, 0x9F, 0x91, 0x8B, 'b'}),
              testing::ElementsAre("a", "", "", "", "👋", "b", ""));
}

TEST(IncrementalDecoder, EmitsACharacterThatCannotBecomeWhole) {
  const auto tokenizer = make_tokenizer(byte_level_json());
  EXPECT_THAT(pieces(*tokenizer, {0xF0, 0x9F, 'b', 0xE4}), testing::ElementsAre("", "", "\uFFFDb", "", "\uFFFD"));
}

TEST(IncrementalDecoder, LeavesOutSpecialTokensAndTheFirstSpace) {
  const auto tokenizer = make_tokenizer(sentencepiece_json());
  EXPECT_THAT(pieces(*tokenizer, {1, 263, 263, 2}), testing::ElementsAre("", "hi", " hi", "", ""));
  EXPECT_THAT(pieces(*tokenizer, {9999, 263}), testing::ElementsAre("", "hi", ""));
}

TEST(IncrementalDecoder, EqualsDecodeForAnyTokens) {
  std::mt19937 random(7);
  for (const Json& json : {byte_level_json(), sentencepiece_json()}) {
    const auto tokenizer = make_tokenizer(json);
    std::uniform_int_distribution<std::int32_t> any_id(-1, static_cast<std::int32_t>(tokenizer->vocab_size()));
    for (int round = 0; round < 2000; ++round) {
      Ids ids(1 + random() % 12);
      for (std::int32_t& id : ids) id = any_id(random);
      for (const bool skip : {true, false}) {
        std::string text;
        for (const std::string& piece : pieces(*tokenizer, ids, skip)) {
          EXPECT_TRUE(is_valid_utf8(piece));
          text += piece;
        }
        EXPECT_EQ(text, tokenizer->decode(ids, skip));
      }
    }
  }
}

}  // namespace
}  // namespace nibble::tokenizer
