#include "backend/host_ops.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::backend {
namespace {

TEST(HostOps, MemoryIsSomethingBetweenZeroAndTheMachine) {
  const Memory memory = host_memory();
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
}

TEST(HostOps, ActivationsHaveScalesAndSumsWhereTheirFormatNeedsThem) {
  const Activation dense = make_host_activation(4, 96, {});
  EXPECT_TRUE(dense.scales.is_empty());
  const Activation grouped = make_host_activation(4, 96, {.kind = ActivationKind::Int8PerGroup, .group_size = 64});
  EXPECT_EQ(grouped.values.dtype(), DType::I8);
  EXPECT_EQ(grouped.scales.shape(), (Shape{4, 2}));
  EXPECT_EQ(grouped.sums.shape(), (Shape{4, 2}));
}

TEST(HostOps, ReadReturnsWhatWriteStored) {
  Activation activation = make_host_activation(4, 3, {.kind = ActivationKind::F16});
  const std::vector<float> values{1, -2, 0.5f, 3, 4, 5};
  write_host_activation({values.data(), 2, 3, 3}, activation);
  std::vector<float> back(6);
  read_host_activation(activation, {back.data(), 2, 3, 3});
  EXPECT_EQ(back, values);
}

TEST(HostOps, RopeTablesTurnEachPairByPositionTimesFrequency) {
  const HostRope rope({.inv_freq = {1.0f, 0.01f}, .attention_factor = 2, .max_positions = 100});
  EXPECT_FLOAT_EQ(rope.cos(0)[0], 2);
  EXPECT_FLOAT_EQ(rope.sin(0)[1], 0);
  EXPECT_FLOAT_EQ(rope.cos(7)[0], 2 * std::cos(7.0f));
  EXPECT_FLOAT_EQ(rope.sin(99)[1], 2 * std::sin(0.99f));
}

}  // namespace
}  // namespace nibble::backend
