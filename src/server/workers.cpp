#include "server/workers.h"

#include <utility>

namespace nibble::server {

Workers::Workers(int num_threads, std::size_t max_queued) : max_queued_(max_queued) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

Workers::~Workers() {
  stop();
}

Workers::Submitted Workers::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (is_stopping_ || queue_.size() >= max_queued_) return Submitted::No;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
  return Submitted::Yes;
}

void Workers::stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  threads_.clear();
}

void Workers::work() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return is_stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace nibble::server
