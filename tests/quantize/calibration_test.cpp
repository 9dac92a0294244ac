#include "quantize/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <utility>

#include "core/file.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;

std::vector<std::int32_t> counting(std::int32_t count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

std::vector<std::vector<std::int32_t>> files(std::vector<std::int32_t> one) {
  return {std::move(one)};
}

CalibrationOptions options_of(std::int64_t num_samples, std::int64_t seq_len, std::uint64_t seed = 0) {
  return {.sources = {"text.txt"}, .num_samples = num_samples, .seq_len = seq_len, .seed = seed};
}

TEST(DrawSamples, AreDistinctWholeWindowsInTextOrder) {
  const auto samples = draw_samples(files(counting(1005)), options_of(20, 10, 5));
  ASSERT_EQ(samples.num_samples, 20);
  ASSERT_EQ(samples.tokens.size(), 200u);
  std::int32_t previous = -1;
  for (std::int64_t i = 0; i < 20; ++i) {
    const auto sample = samples.sample(i);
    EXPECT_EQ(sample[0] % 10, 0);
    EXPECT_GT(sample[0], previous);
    for (std::int32_t t = 0; t < 10; ++t) EXPECT_EQ(sample[static_cast<std::size_t>(t)], sample[0] + t);
    previous = sample[0];
  }
}

TEST(DrawSamples, DependOnTheSeedAlone) {
  const auto tokens = files(counting(10000));
  EXPECT_EQ(draw_samples(tokens, options_of(8, 10, 1)).tokens, draw_samples(tokens, options_of(8, 10, 1)).tokens);
  EXPECT_NE(draw_samples(tokens, options_of(8, 10, 1)).tokens, draw_samples(tokens, options_of(8, 10, 2)).tokens);
}

TEST(DrawSamples, TakeEveryWindowOfAShortText) {
  const auto samples = draw_samples(files(counting(35)), options_of(128, 10));
  EXPECT_EQ(samples.num_samples, 3);
  EXPECT_EQ(samples.tokens, counting(30));
  EXPECT_THROW(draw_samples(files(counting(9)), options_of(128, 10)), Error);
}

TEST(DrawSamples, NoneSpansTwoFiles) {
  std::vector<std::vector<std::int32_t>> two = {counting(25), counting(38)};
  for (std::int32_t& token : two[1]) token += 1000;
  const auto samples = draw_samples(two, options_of(128, 10));
  ASSERT_EQ(samples.num_samples, 5);
  EXPECT_EQ(samples.sample(1)[9], 19);
  EXPECT_EQ(samples.sample(2)[0], 1000);
  EXPECT_EQ(samples.sample(4)[9], 1029);
}

TEST(DrawHeldOut, SharesNoWindowWithTheSamplesAndLeavesThemAlone) {
  const auto tokens = files(counting(1005));
  const auto samples = draw_samples(tokens, options_of(60, 10, 5));
  const auto held_out = draw_held_out(tokens, options_of(60, 10, 5), 30);
  ASSERT_EQ(held_out.num_samples, 30);
  ASSERT_EQ(held_out.seq_len, 10);
  std::set<std::int32_t> first_tokens;
  for (std::int64_t i = 0; i < 60; ++i) first_tokens.insert(samples.sample(i)[0]);
  std::int32_t previous = -1;
  for (std::int64_t i = 0; i < 30; ++i) {
    const auto window = held_out.sample(i);
    EXPECT_FALSE(first_tokens.contains(window[0]));
    EXPECT_EQ(window[9], window[0] + 9);
    EXPECT_GT(window[0], previous);
    previous = window[0];
  }
}

TEST(DrawHeldOut, GivesWhatIsLeft) {
  const auto tokens = files(counting(100));
  EXPECT_EQ(draw_held_out(tokens, options_of(8, 10), 30).num_samples, 2);
  EXPECT_EQ(draw_held_out(tokens, options_of(10, 10), 30).num_samples, 0);
  EXPECT_EQ(draw_held_out(tokens, options_of(128, 10), 30).num_samples, 0);
  EXPECT_EQ(draw_held_out(files(counting(9)), options_of(1, 10), 30).num_samples, 0);
}

class TokenizeFileTest : public ::testing::Test {
 protected:
  TokenizeFileTest() {
    write_tiny_model(folder_ / "model");
    checkpoint_ = formats::Checkpoint::open(folder_ / "model");
    tokenizer_ = tokenizer::Tokenizer::from_json(byte_tokenizer_json());
  }
  static Excerpt whole(const std::filesystem::path& file) {
    return {.file = file, .end = static_cast<std::int64_t>(std::filesystem::file_size(file))};
  }
  std::string decoded(const std::string& file, const std::string& content) {
    write_text_file(folder_ / file, content);
    return tokenizer_->decode(tokenize_excerpt(whole(folder_ / file), *checkpoint_, *tokenizer_));
  }
  TemporaryFolder folder_;
  std::unique_ptr<formats::Checkpoint> checkpoint_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
};

TEST_F(TokenizeFileTest, TextIsTakenAsItIs) {
  EXPECT_EQ(decoded("a.txt", "one\n{\"text\": 2}\n"), "one\n{\"text\": 2}\n");
}

TEST_F(TokenizeFileTest, JsonLinesJoinTextsAndConversations) {
  const std::string text = decoded("a.jsonl",
                                   "{\"text\": \"first\\n\"}\n\n"
                                   "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}\n");
  EXPECT_THAT(text, ::testing::StartsWith("first\n"));
  EXPECT_THAT(text, HasSubstr("hello"));
}

TEST_F(TokenizeFileTest, ALineWithoutTextIsNamed) {
  try {
    decoded("b.jsonl", "{\"text\": \"fine\"}\n{\"question\": \"?\"}\n");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("b.jsonl line 2: expected {\"text\""));
  }
}

TEST_F(TokenizeFileTest, AnExcerptIsItsBytes) {
  write_text_file(folder_ / "c.txt", "one\ntwo\nthree\n");
  const Excerpt part{.file = folder_ / "c.txt", .begin = 4, .end = 8, .is_whole = false};
  EXPECT_EQ(tokenizer_->decode(tokenize_excerpt(part, *checkpoint_, *tokenizer_)), "two\n");
}

TEST_F(TokenizeFileTest, ABadLineOfAnExcerptIsNamedByItsPlace) {
  write_text_file(folder_ / "d.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"fine\"}\n{\"question\": \"?\"}\n");
  const Excerpt part{.file = folder_ / "d.jsonl", .begin = 17, .end = 51, .is_whole = false};
  try {
    tokenize_excerpt(part, *checkpoint_, *tokenizer_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("d.jsonl line 2 behind byte 17: expected"));
  }
}

}  // namespace
}  // namespace nibble::quantize
