#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

#include "tokenizer/unicode.h"

namespace nibble::tokenizer {
namespace {

// Expected values: Python 3.11, bytes.decode(errors="replace").
TEST(Utf8, ReplacesEachMaximalPartAsPythonDoes) {
  EXPECT_EQ(replace_invalid_utf8("plain é 中 👋"), "plain é 中 👋");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x91x"), "\uFFFDx");
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");  // overlong
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\x80\xC2\xC3\xA9\xFF"), "\uFFFD\uFFFDé\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xE4\xBD"), "\uFFFD");
}

TEST(Utf8, KnowsHowManyBytesMayStillBecomeACharacter) {
  EXPECT_EQ(incomplete_utf8_suffix(""), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("aé"), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xC3"), 1U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xF0\x9F\x91"), 3U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xF0\x9F\x91\x8B"), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("\xE0\x80"), 0U);  // no character begins so
  EXPECT_EQ(incomplete_utf8_suffix("\x80\x80\x80\x80"), 0U);
}

TEST(Utf8, WritesWhatItReads) {
  for (const char32_t code_point : {U'a', U'\u00e9', U'\u4e2d', U'\U0001F44B', U'\U0010FFFF'}) {
    std::string text = "x";
    append_utf8(text, code_point);
    EXPECT_EQ(decode_utf8(text, 1).value, code_point);
    EXPECT_EQ(decode_utf8(text, 1).size_bytes, text.size() - 1);
    EXPECT_EQ(decode_utf8_before(text, text.size()).value, code_point);
  }
}

// Unicode's own examples (UAX #15, figures 3 to 6).
TEST(Unicode, NormalizesAsTheStandardShows) {
  EXPECT_EQ(normalize("\u1e9b\u0323", NormalizationForm::Nfc), "\u1e9b\u0323");
  EXPECT_EQ(normalize("\u1e9b\u0323", NormalizationForm::Nfd), "\u017f\u0323\u0307");
  EXPECT_EQ(normalize("\u1e9b\u0323", NormalizationForm::Nfkc), "\u1e69");
  EXPECT_EQ(normalize("\u1e9b\u0323", NormalizationForm::Nfkd), "s\u0323\u0307");
  EXPECT_EQ(normalize("plain q\u0307\u0323 A\u030a", NormalizationForm::Nfc), "plain q\u0323\u0307 \u00c5");
}

TEST(Unicode, LeavesAloneWhatTheNormalizationOfTokenizersDoesNotKnow) {
  EXPECT_EQ(normalize("a\u08cf\u0301", NormalizationForm::Nfc), "a\u08cf\u0301");  // a mark of Unicode 14
}

}  // namespace
}  // namespace nibble::tokenizer
