#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

/// A borrowed callable without allocation; must not outlive what it refers to.
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& callable)  // NOLINT: implicit, as a parameter type
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(static_cast<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, static_cast<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

/// A persistent pool of threads that run one parallel loop at a time. The calling thread works too, as thread
/// 0. Idle workers spin for a few microseconds, then park. One thread at a time may call `run`; loops do not
/// nest. Nothing thrown inside a body may leave it (style.md §7): check before entering.
class ThreadPool {
 public:
  /// `num_threads` includes the caller; 0 takes every hardware thread that this process may use.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(task, thread) once for each task in [0, num_tasks); threads take tasks as they become free.
  /// Results must not depend on which thread runs a task. Returns when all are done.
  void run(std::int64_t num_tasks, FunctionRef<void(std::int64_t task, int thread)> body);

 private:
  struct Job {
    FunctionRef<void(std::int64_t, int)>* body = nullptr;
    std::int64_t num_tasks = 0;
  };
  void work(int thread);
  void take_tasks(int thread);

  std::vector<std::jthread> workers_;
  Job job_;
  alignas(64) std::atomic<std::int64_t> next_task_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<std::int32_t> num_busy_{0};
  std::atomic<bool> stopping_{false};
};

/// Hardware threads this process may run on (affinity and cgroup CPU quota honoured), at least 1.
int num_available_cpus();

}  // namespace nibble
