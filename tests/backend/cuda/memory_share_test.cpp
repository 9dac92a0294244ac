#include <gtest/gtest.h>

#include <cstdint>

#include "backend/cuda/device.h"

namespace nibble::backend::cuda {
namespace {

TEST(MemoryShare, CountsThisProcessAndItsContextOnly) {
  constexpr std::int64_t kGb = 1'000'000'000;
  const auto memory = [&](std::int64_t used) {
    return Memory{.total_bytes = 80 * kGb, .free_bytes = 80 * kGb - used, .is_devices_own = true, .used_bytes = used};
  };
  EXPECT_EQ(memory_share(memory(10 * kGb), kGb / 2).used_bytes, 10 * kGb);  // alone on the device
  // 20 GB were others', of which all but a context's worth are told apart.
  EXPECT_EQ(memory_share(memory(30 * kGb), 20 * kGb).used_bytes, 10 * kGb + (std::int64_t{1} << 30));
}

}  // namespace
}  // namespace nibble::backend::cuda
