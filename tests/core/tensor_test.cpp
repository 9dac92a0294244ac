#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/expect_error.h"

namespace nibble {
namespace {

TEST(Shape, CountsAndPrints) {
  EXPECT_EQ(Shape({576, 1536}).to_string(), "[576, 1536]");
  EXPECT_EQ(Shape({576, 1536}).num_elements(), 576 * 1536);
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_EQ(Shape({3, 0}).num_elements(), 0);
  EXPECT_NE(Shape({2, 3}), Shape({3, 2}));
  EXPECT_NE(Shape({2}), Shape({2, 1}));
}

TEST(Shape, RefusesWhatCannotBe) {
  expect_error(ErrorCode::Unsupported, "rank 5", [] { Shape{1, 1, 1, 1, 1}; });
  expect_error(ErrorCode::InvalidArgument, "negative", [] { Shape{2, -1}; });
  expect_error(ErrorCode::InvalidArgument, "2^62", [] { Shape{std::int64_t{1} << 40, std::int64_t{1} << 40}; });
  expect_error(ErrorCode::Corrupt, "size overflow", [] { checked_multiply(INT64_MAX, 2); });
  EXPECT_EQ(checked_multiply(1 << 20, 1 << 20), std::int64_t{1} << 40);
}

TEST(Tensor, StridedViewsAreCopiedRowByRow) {
  std::vector<float> values(12);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const TensorView left(values.data(), DType::F32, {3, 2}, 4, {});
  EXPECT_FALSE(left.is_contiguous());
  const Tensor copy = Tensor::copy_of(left);
  const auto copied = copy.span<float>();
  EXPECT_EQ(std::vector<float>(copied.begin(), copied.end()), (std::vector<float>{0, 1, 4, 5, 8, 9}));
}

TEST(Tensor, CopiesIntegers) {
  const std::vector<std::int32_t> values{1, -2, 3};
  const Tensor copy = Tensor::copy_of({values.data(), DType::I32, {3}});
  EXPECT_EQ(copy.span<std::int32_t>()[1], -2);
}

TEST(Tensor, ConvertsThroughF32WithOneRounding) {
  const std::vector<float> values{1.0f, 0.1f, -65504.0f, 1e6f};
  const Tensor half = to_dtype({values.data(), DType::F32, {4}}, DType::F16);
  EXPECT_EQ(half.span<Half>()[1].bits, 0x2e66);
  EXPECT_EQ(half.span<Half>()[2].bits, 0xfbff);
  EXPECT_EQ(half.span<Half>()[3].bits, 0x7c00);
  const Tensor bfloat = to_dtype(half, DType::BF16);
  EXPECT_EQ(bfloat.span<BFloat16>()[0].bits, 0x3f80);
  EXPECT_EQ(to_dtype(bfloat, DType::F32).span<float>()[0], 1.0f);
}

TEST(Tensor, RefusesToConvertIntegers) {
  const std::int32_t one = 1;
  expect_error(ErrorCode::InvalidArgument, "integer dtype I32", [&] { to_dtype({&one, DType::I32, {1}}, DType::F32); });
}

TEST(Tensor, BorrowsWithoutOwning) {
  const std::vector<float> values{1, 2};
  const Tensor borrowed = Tensor::borrow({values.data(), DType::F32, {2}});
  EXPECT_EQ(borrowed.view().data(), values.data());
  EXPECT_FALSE(borrowed.owns());
  EXPECT_TRUE(Tensor::zeros(DType::F32, {2}).owns());
  EXPECT_TRUE(Tensor().is_empty());
}

TEST(Tensor, HostMemoryIsAligned) {
  for (const std::int64_t size : {1, 3, 1000}) {
    const Tensor tensor = Tensor::empty(DType::U8, {size});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data()) % 64, 0u);
  }
}

TEST(TensorDeathTest, ViewsOfAnotherTypeAbort) {
  const Tensor tensor = Tensor::zeros(DType::F32, {2});
  EXPECT_DEATH(tensor.span<Half>(), "another dtype");
}

}  // namespace
}  // namespace nibble
