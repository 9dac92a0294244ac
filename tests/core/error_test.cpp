#include "core/error.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Error, ContextsStandInFrontFromOutsideIn) {
  const Error error(ErrorCode::Corrupt, "shape differs");
  const Error outer = error.in("q_proj.qweight").in("model.safetensors");
  EXPECT_STREQ(outer.what(), "model.safetensors: q_proj.qweight: shape differs");
  EXPECT_EQ(outer.code(), ErrorCode::Corrupt);
}

TEST(ErrorDeathTest, BrokenPromisesAbortWithTheirText) {
  EXPECT_DEATH(check(false, "rows match"), "broken promise at .*error_test.cpp.*rows match");
}

}  // namespace
}  // namespace nibble
