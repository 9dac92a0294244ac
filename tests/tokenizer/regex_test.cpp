#include "tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/expect_error.h"
#include "tokenizer/oniguruma.h"

namespace nibble::tokenizer {
namespace {

std::vector<std::string> matches(const Regex& regex, const std::string& text) {
  RegexScratch scratch;
  scratch.begin(text.size());
  std::vector<std::string> found;
  regex.for_each_match(text, scratch,
                       [&](Regex::Match match) { found.push_back(text.substr(match.begin, match.end - match.begin)); });
  return found;
}

TEST(Regex, FindsMatchesFarApart) {
  std::string text(100'000, '.');
  text += "é";
  text.append(70'000, '.').append("x");
  EXPECT_THAT(matches(Regex("[éx]"), text), testing::ElementsAre("é", "x"));
}

TEST(Regex, CountsAnEmptyMatchOnlyBehindNoOther) {
  EXPECT_THAT(matches(Regex("a*"), "baaé"), testing::ElementsAre("", "aa", ""));
}

TEST(Regex, MatchesLiteralsAsTheyStand) {
  const std::string literal = "a.b*[c]\\d{2} (e)|^$#-&~\n";
  EXPECT_THAT(matches(Regex::literal(literal), "x" + literal + "axb"), testing::ElementsAre(literal));
}

// In Ruby's syntax, which tokenizers compiles.
TEST(Oniguruma, TranslatesWhatPcre2ReadsDifferently) {
  EXPECT_EQ(translate_oniguruma(R"(\h)"), "[0-9A-Fa-f]");
  EXPECT_EQ(translate_oniguruma("(?m:.)(?im)a"), "(?s:.)(?is)a");
  EXPECT_EQ(translate_oniguruma("a{,3}"), "a{0,3}");
  EXPECT_EQ(translate_oniguruma("(ab){1,3}+c"), "(?:(ab){1,3})+c");
  EXPECT_EQ(translate_oniguruma(R"(\p{N}{1,3}+)"), R"((?:\p{N}{1,3})+)");
  EXPECT_EQ(translate_oniguruma("a{b}"), R"(a\{b})");
  EXPECT_EQ(translate_oniguruma(R"([^\r\n\p{L}]?\p{L}++)"), R"([^\r\n\p{L}]?\p{L}++)");
}

TEST(Oniguruma, TakesUnicodesWhiteSpace) {
  EXPECT_THAT(matches(Regex(R"(\s)"), "a\u180eb\u0085c\u200bd"), testing::ElementsAre("\u0085"));
  EXPECT_THAT(matches(Regex(R"([^\s])"), "\u180e\u3000"), testing::ElementsAre("\u180e"));
}

TEST(Oniguruma, RefusesWhatHasNoEquivalent) {
  for (const char* pattern : {"[a[b]]", "[a&&b]", "(*F)", R"(\Qa\E)", R"([\W])"}) {
    expect_error(ErrorCode::Unsupported, pattern, [&] { translate_oniguruma(pattern); });
  }
}

}  // namespace
}  // namespace nibble::tokenizer
