#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble::server {

/// A few threads for what would hold up I/O: parsing large bodies, rendering templates, tokenizing. Any thread may
/// submit; tasks must not throw.
class Workers {
 public:
  Workers(int num_threads, std::size_t max_queued);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  enum class Submitted : bool { No, Yes };
  /// No: as many tasks wait as may, or `stop` was called; the task is dropped.
  [[nodiscard]] Submitted submit(std::function<void()> task);
  /// Finishes what is queued and joins.
  void stop();

 private:
  void work();

  std::size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool is_stopping_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace nibble::server
