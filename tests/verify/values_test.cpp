#include "verify/values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace nibble::verify {
namespace {

std::string problem_of(const std::string& name, DType dtype, float bad) {
  Tensor values = Tensor::empty(DType::F32, {3, 2000});  // longer than what is converted at once
  for (float& value : values.span<float>()) value = 0.5f;
  values.span<float>()[5001] = bad;
  const auto finding = check_values(name, to_dtype(values, dtype));
  return finding ? finding->problem : "";
}

TEST(Values, NamesTheElementThatIsNoNumber) {
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    EXPECT_EQ(problem_of("a.weight", dtype, NAN), "[2, 1001] is NaN");
    EXPECT_EQ(problem_of("a.weight", dtype, -INFINITY), "[2, 1001] is infinite");
    EXPECT_EQ(problem_of("a.weight", dtype, 0), "");
  }
  EXPECT_EQ(problem_of("a.weight", DType::F8E4M3, NAN), "[2, 1001] is NaN");
}

TEST(Values, ScalesAreNeitherZeroNorHardlyAnything) {
  EXPECT_EQ(problem_of("a.scales", DType::F16, 0), "[2, 1001] is a scale of zero");
  EXPECT_EQ(problem_of("a.scales", DType::F16, 0x1p-23f),
            "[2, 1001] is a denormal scale with fewer than four significant bits");
  EXPECT_EQ(problem_of("a.scales", DType::F16, 0x1p-20f), "");
  EXPECT_EQ(problem_of("a.scales", DType::F32, 0x1p-23f), "");
  EXPECT_EQ(problem_of("a.scales", DType::F16, -0.5f), "") << "guided rounding makes scales of both signs";
  EXPECT_EQ(problem_of("a.k_scale", DType::F32, -0.5f), "[2, 1001] is a negative scale");
}

}  // namespace
}  // namespace nibble::verify
