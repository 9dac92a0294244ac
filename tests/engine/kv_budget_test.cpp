#include "engine/kv_budget.h"

#include <gtest/gtest.h>

#include "core/expect_error.h"

namespace nibble::engine {
namespace {

constexpr std::int64_t kGb = 1'000'000'000;

backend::Memory gpu(std::int64_t used_gb, std::int64_t others_gb = 0) {
  return {.total_bytes = 80 * kGb,
          .free_bytes = (80 - used_gb - others_gb) * kGb,
          .is_devices_own = true,
          .used_bytes = used_gb * kGb};
}

backend::Memory host(std::int64_t free_gb) {
  return {.total_bytes = 64 * kGb, .free_bytes = free_gb * kGb};
}

EngineOptions with_share(double share) {
  EngineOptions options;
  options.gpu_memory_utilization = share;
  return options;
}

TEST(KvBudget, TakesTheShareOfADeviceLessWhatIsUsed) {
  const std::int64_t blocks = choose_num_blocks(1'000'000, 4096, with_share(0.5), gpu(10));
  EXPECT_EQ(blocks, (40 * kGb - 10 * kGb - kCaptureBytes) / 1'000'000);
}

TEST(KvBudget, CountsOtherProgramsNotAgainstTheShare) {
  const auto options = with_share(0.4);
  EXPECT_EQ(choose_num_blocks(1'000'000, 4096, options, gpu(10, 30)),
            choose_num_blocks(1'000'000, 4096, options, gpu(10)));
  expect_error(ErrorCode::OutOfMemory, "other programs hold 50.00 GB",
               [&] { choose_num_blocks(1'000'000, 4096, options, gpu(10, 50)); });
}

TEST(KvBudget, SaysWhereTheWeightsExceedTheShare) {
  expect_error(ErrorCode::OutOfMemory, "--gpu-memory-utilization 0.25: weights and one step take 36.00 GB",
               [] { choose_num_blocks(1'000'000, 4096, with_share(0.25), gpu(36)); });
}

TEST(KvBudget, TakesAQuarterOfTheHostsFreeMemoryAndNoMoreThanTheSequencesFill) {
  EngineOptions options;
  options.max_num_seqs = 4;
  EXPECT_EQ(choose_num_blocks(kGb, 4096, options, host(16)), 4);
  EXPECT_EQ(choose_num_blocks(1000, 4096, options, host(16)), 4 * 256);
}

TEST(KvBudget, FollowsItsFlagsOnAnyDevice) {
  for (const backend::Memory& memory : {gpu(10), host(16)}) {
    EngineOptions options;
    options.kv_cache_memory_bytes = 5 * kGb;
    EXPECT_EQ(choose_num_blocks(kGb, 4096, options, memory), 5);
    options.kv_cache_memory_bytes = 100;
    expect_error(ErrorCode::OutOfMemory, "--kv-cache-memory-bytes",
                 [&] { choose_num_blocks(kGb, 4096, options, memory); });
    options.num_gpu_blocks_override = 77;
    EXPECT_EQ(choose_num_blocks(kGb, 4096, options, memory), 77);
  }
}

}  // namespace
}  // namespace nibble::engine
