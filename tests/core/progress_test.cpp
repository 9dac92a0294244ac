#include "core/progress.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Progress, DurationsReadLikeAPersonSaysThem) {
  EXPECT_EQ(format_duration(4.23), "4.2 s");
  EXPECT_EQ(format_duration(190), "3 min 10 s");
  EXPECT_EQ(format_duration(7500), "2 h 5 min");
}

TEST(Progress, BytesUsePowersOf1000) {
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1500), "1.5 KB");
  EXPECT_EQ(format_bytes(135'200'000), "135.2 MB");
  EXPECT_EQ(format_bytes(13e9), "13.00 GB");
}

}  // namespace
}  // namespace nibble
