#include "apps/nibble/typo.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble::apps {
namespace {

const std::vector<std::string> kNames = {"quantize", "eval", "serve", "generate"};

TEST(Typo, FindsTheWordThatWasMeant) {
  EXPECT_EQ(closest("serv", kNames), "serve");
  EXPECT_EQ(closest("quantise", kNames), "quantize");
  EXPECT_EQ(closest("egnerate", kNames), "generate");  // swapped neighbours count once
  EXPECT_EQ(closest("evl", kNames), "eval");
}

TEST(Typo, SuggestsNothingFarAway) {
  EXPECT_FALSE(closest("train", kNames));
  EXPECT_FALSE(closest("", kNames));
  EXPECT_FALSE(closest("serve", {}));
}

TEST(Typo, IgnoresWordsNoFlagIsAsLongAs) {
  EXPECT_FALSE(closest(std::string(1 << 20, 's'), kNames));
}

}  // namespace
}  // namespace nibble::apps
