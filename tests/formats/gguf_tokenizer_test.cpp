#include "formats/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "formats/gguf_builder.h"

namespace nibble::formats {
namespace {

Json make_json(const GgufBuilder& builder) {
  const std::string file = builder.build();
  return Json::parse(make_tokenizer_json(GgufFile::parse(std::as_bytes(std::span(file)))));
}

void expect_refused(ErrorCode code, const std::string& part, const GgufBuilder& builder) {
  expect_error(code, part, [&] { make_json(builder); });
}

GgufBuilder make_gpt2(const std::string& pre) {
  GgufBuilder builder;
  builder.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", pre);
  builder.strings("tokenizer.ggml.tokens", {"<|end|>", "a", "Ġ", "Ġa", "<tool>"});
  builder.strings("tokenizer.ggml.merges", {"Ġ a"});
  builder.numbers<std::int32_t>("tokenizer.ggml.token_type", {3, 1, 1, 1, 4});
  builder.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 0);
  return builder;
}

TEST(GgufTokenizer, MakesByteLevelBpe) {
  const Json json = make_json(make_gpt2("smollm"));
  EXPECT_EQ(json["model"]["vocab"]["Ġa"], 3);
  EXPECT_EQ(json["model"]["merges"], Json::array({"Ġ a"}));
  EXPECT_EQ(json["decoder"]["type"], "ByteLevel");
  ASSERT_EQ(json["added_tokens"].size(), 2u);
  EXPECT_EQ(json["added_tokens"][0]["special"], true);
  EXPECT_EQ(json["added_tokens"][1]["content"], "<tool>");
  EXPECT_EQ(json["added_tokens"][1]["special"], false);
  EXPECT_TRUE(json["post_processor"].is_null());
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
}

TEST(GgufTokenizer, TakesThePreTokenizerByItsName) {
  const auto regex = [](const char* pre) {
    return make_json(make_gpt2(pre))["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get<std::string>();
  };
  EXPECT_THAT(regex("llama-bpe"), testing::HasSubstr(R"(\p{N}{1,3})"));
  EXPECT_THAT(regex("qwen2"), testing::HasSubstr(R"(|\p{N}|)"));
  EXPECT_EQ(make_json(make_gpt2("qwen2"))["normalizer"]["type"], "NFC");
  EXPECT_EQ(make_json(make_gpt2("llama-bpe"))["model"]["ignore_merges"], true);
  EXPECT_EQ(make_json(make_gpt2("gpt-2"))["pre_tokenizer"]["use_regex"], true);
  expect_refused(ErrorCode::Unsupported, "tokenizer.ggml.pre 'deepseek-llm' is not known", make_gpt2("deepseek-llm"));
}

TEST(GgufTokenizer, AddsBosWhereTheFileOrItsFamilyWantsIt) {
  const auto special_tokens = [](const GgufBuilder& builder) { return make_json(builder)["post_processor"]; };
  EXPECT_EQ(special_tokens(make_gpt2("llama-bpe"))["single"][0]["SpecialToken"]["id"], "<|end|>");
  EXPECT_EQ(special_tokens(make_gpt2("llama-bpe"))["pair"].size(), 4u);
  EXPECT_TRUE(special_tokens(make_gpt2("llama-bpe").boolean("tokenizer.ggml.add_bos_token", false)).is_null());
  const Json both = special_tokens(
      make_gpt2("smollm").boolean("tokenizer.ggml.add_bos_token", true).boolean("tokenizer.ggml.add_eos_token", true));
  EXPECT_EQ(both["single"].size(), 3u);
  EXPECT_EQ(both["special_tokens"]["<|end|>"]["ids"], Json::array({0}));
}

GgufBuilder make_sentence_piece() {
  GgufBuilder builder;
  builder.string("tokenizer.ggml.model", "llama");
  builder.strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "<0x41>", "▁", "a", "b", "ab", "▁ab"});
  builder.numbers<float>("tokenizer.ggml.scores", {0, 0, 0, -5, -6, -7, -2, -1});
  builder.numbers<std::int32_t>("tokenizer.ggml.token_type", {2, 3, 6, 1, 1, 1, 1, 1});
  builder.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.unknown_token_id", 0);
  return builder;
}

TEST(GgufTokenizer, DerivesSentencePieceMergesFromScores) {
  const Json json = make_json(make_sentence_piece());
  EXPECT_EQ(json["model"]["merges"], Json::array({"▁ ab", "a b"}));
  EXPECT_EQ(json["model"]["byte_fallback"], true);
  EXPECT_EQ(json["model"]["unk_token"], "<unk>");
  EXPECT_EQ(json["normalizer"]["normalizers"][0]["prepend"], "▁");
  EXPECT_EQ(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
  EXPECT_EQ(json["added_tokens"].size(), 2u);
}

TEST(GgufTokenizer, RefusesBrokenVocabularies) {
  GgufBuilder none;
  expect_refused(ErrorCode::Corrupt, "tokenizer.ggml.tokens: missing", none);
  expect_refused(ErrorCode::Unsupported, "tokenizer.ggml.model 't5'",
                 GgufBuilder().string("tokenizer.ggml.model", "t5").strings("tokenizer.ggml.tokens", {"a"}));
  expect_refused(ErrorCode::Corrupt, "token 1 (\"a\") stands there twice",
                 GgufBuilder().strings("tokenizer.ggml.tokens", {"a", "a"}));
  expect_refused(ErrorCode::Corrupt, "not valid UTF-8",
                 GgufBuilder()
                     .string("tokenizer.ggml.model", "gpt2")
                     .strings("tokenizer.ggml.tokens", {"\xff"})
                     .strings("tokenizer.ggml.merges", {}));
  expect_refused(ErrorCode::Corrupt, "is no pair",
                 GgufBuilder()
                     .string("tokenizer.ggml.model", "gpt2")
                     .strings("tokenizer.ggml.tokens", {"a"})
                     .strings("tokenizer.ggml.merges", {"ab"}));
  expect_refused(ErrorCode::Corrupt, "token_type: 1 entries for 2 tokens",
                 GgufBuilder()
                     .strings("tokenizer.ggml.tokens", {"a", "b"})
                     .numbers<std::int32_t>("tokenizer.ggml.token_type", {1}));
  expect_refused(ErrorCode::Corrupt, "one score a token",
                 GgufBuilder().string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", {"a"}));
  GgufBuilder outside;
  outside.string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", {"a"});
  outside.strings("tokenizer.ggml.merges", {}).u32("tokenizer.ggml.bos_token_id", 1);
  expect_refused(ErrorCode::Corrupt, "bos_token_id: 1 is outside the vocabulary", outside);
}

TEST(GgufTokenizer, ConfigNamesSpecialTokensAndTheTemplate) {
  GgufBuilder builder = make_gpt2("smollm").string("tokenizer.chat_template", "{{ messages }}");
  const std::string file = builder.build();
  const Json config = make_tokenizer_config(GgufFile::parse(std::as_bytes(std::span(file))));
  EXPECT_EQ(config["bos_token"], "<|end|>");
  EXPECT_EQ(config["chat_template"], "{{ messages }}");
  EXPECT_FALSE(config.contains("pad_token"));
}

}  // namespace
}  // namespace nibble::formats
