#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/thread_pool.h"

/// What this machine can do at most, measured, so that every figure stands beside its own ceiling.
namespace nibble::bench {

/// Bytes per second that `pool` reads from a buffer of `size_bytes`, the best of several passes. Weights that fit the
/// last-level cache read faster than memory: measure at the size in question.
inline double read_bandwidth(ThreadPool& pool, std::size_t size_bytes) {
  using Clock = std::chrono::steady_clock;
  const std::vector<std::uint64_t> buffer(size_bytes / sizeof(std::uint64_t), 1);
  constexpr std::size_t kTask = 1 << 15;
  const std::size_t num_tasks = buffer.size() / kTask;
  std::vector<std::uint64_t> sums(num_tasks);
  double best = 1e30;
  for (int pass = 0; pass < 8; ++pass) {
    const Clock::time_point start = Clock::now();
    pool.run(static_cast<std::int64_t>(num_tasks), [&](std::int64_t task, int) {
      const std::uint64_t* from = buffer.data() + static_cast<std::size_t>(task) * kTask;
      std::uint64_t sum = 0;
      for (std::size_t i = 0; i < kTask; ++i) sum += from[i];
      sums[static_cast<std::size_t>(task)] = sum;
    });
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  benchmark::DoNotOptimize(sums.data());
  return static_cast<double>(num_tasks * kTask * sizeof(std::uint64_t)) / best;
}

/// Adds the achieved rates and the machine's read bandwidth over a buffer of the same size to a benchmark's line.
/// `flops`, `bytes`: per iteration.
inline void report(benchmark::State& state, ThreadPool& pool, double flops, double bytes) {
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["machine_GB/s"] = read_bandwidth(pool, static_cast<std::size_t>(bytes)) * 1e-9;
}

/// Threads of all benchmarks: NIBBLE_BENCH_THREADS, else every CPU.
inline int num_threads() {
  const char* text = std::getenv("NIBBLE_BENCH_THREADS");
  return text != nullptr ? std::atoi(text) : 0;
}

}  // namespace nibble::bench
