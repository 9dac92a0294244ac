#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace nibble {
namespace {

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const std::int64_t num_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(num_tasks));
      pool.run(num_tasks, [&](std::int64_t task, int thread) {
        ASSERT_TRUE(thread >= 0 && thread < num_threads);
        runs[static_cast<std::size_t>(task)].fetch_add(1);
      });
      for (const auto& count : runs) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, WritesOfABodyAreVisibleAfterRun) {
  ThreadPool pool(2);
  std::vector<std::int64_t> values(64);
  for (std::int64_t round = 0; round < 2000; ++round) {  // many short jobs: spinning and parked workers both occur
    pool.run(static_cast<std::int64_t>(values.size()),
             [&](std::int64_t task, int) { values[static_cast<std::size_t>(task)] = round + task; });
    for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], round + static_cast<std::int64_t>(i));
  }
}

TEST(ThreadPool, AThreadNumberIsOneThread) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::pair<int, std::thread::id>> seen;
  pool.run(300, [&](std::int64_t, int thread) {
    const std::lock_guard lock(mutex);
    seen.emplace(thread, std::this_thread::get_id());
  });
  std::set<int> numbers;
  for (const auto& [number, id] : seen) EXPECT_TRUE(numbers.insert(number).second) << "two threads numbered " << number;
}

TEST(ThreadPool, IdleWorkersWakeAgain) {
  ThreadPool pool(2);
  std::atomic<int> runs{0};
  pool.run(2, [&](std::int64_t, int) { runs.fetch_add(1); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // long past the spin: workers are parked
  pool.run(2, [&](std::int64_t, int) { runs.fetch_add(1); });
  EXPECT_EQ(runs.load(), 4);
}

TEST(ThreadPool, TakesAtLeastOneCpu) {
  EXPECT_GE(num_available_cpus(), 1);
  EXPECT_EQ(ThreadPool().num_threads(), num_available_cpus());
}

}  // namespace
}  // namespace nibble
