#include "engine/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::engine {
namespace {

/// Ids are bytes, so a test can spell any text as tokens.
class TextStreamTest : public testing::Test {
 protected:
  TextStreamTest() {
    testing_support::write_tiny_config(folder_.path());
    tokenizer_ =
        tokenizer::Tokenizer::from_json(*models::make_dummy_checkpoint(folder_.path(), 0)->side_file("tokenizer.json"));
  }

  /// The pieces that `text`, fed byte by byte, comes out in; the last is finish()'s.
  std::vector<std::string> pieces(const std::string& text, std::vector<std::string> stop,
                                  TextStream::StopString mode = TextStream::StopString::Exclude) {
    TextStream stream(*tokenizer_, std::move(stop), mode, true);
    std::vector<std::string> out;
    for (const char byte : text) {
      out.push_back(stream.add(static_cast<unsigned char>(byte)));
      if (stream.stop_string()) {
        met_ = *stream.stop_string();
        return out;
      }
    }
    out.push_back(stream.finish());
    return out;
  }

  testing_support::TemporaryFolder folder_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  std::string met_;
};

TEST_F(TextStreamTest, NeverEmitsHalfACharacter) {
  EXPECT_THAT(pieces("a\xc3\xa9z", {}), testing::ElementsAre("a", "", "\xc3\xa9", "z", ""));
}

TEST_F(TextStreamTest, HoldsBackWhatMayBecomeAStopString) {
  EXPECT_THAT(pieces("abENx", {"END"}), testing::ElementsAre("a", "b", "", "", "ENx", ""));
  EXPECT_THAT(pieces("abEN", {"END"}), testing::ElementsAre("a", "b", "", "", "EN"));
}

TEST_F(TextStreamTest, StopsBeforeOrAfterTheStopString) {
  EXPECT_THAT(pieces("abENDcd", {"END"}), testing::ElementsAre("a", "b", "", "", ""));
  EXPECT_EQ(met_, "END");
  EXPECT_THAT(pieces("abENDcd", {"END"}, TextStream::StopString::Include),
              testing::ElementsAre("a", "b", "", "", "END"));
}

TEST_F(TextStreamTest, TheEarliestOfSeveralStopStringsWins) {
  EXPECT_THAT(pieces("xaby", {"by", "ab"}), testing::ElementsAre("x", "", ""));
  EXPECT_EQ(met_, "ab");
}

}  // namespace
}  // namespace nibble::engine
