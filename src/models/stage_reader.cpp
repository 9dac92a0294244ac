#include "models/stage_reader.h"

#include <utility>

namespace nibble::models {

StageReader::StageReader(const formats::Checkpoint& checkpoint, const std::vector<BlockSpec>& blocks, int num_threads,
                         std::int64_t max_bytes)
    : checkpoint_(checkpoint), max_bytes_(max_bytes) {
  std::int64_t stage_idx = 0;
  for (const BlockSpec& block : blocks) {
    for (const Stage& stage : block.stages) {
      for (const std::string& relative : stage.linears) {
        Task& task = tasks_.emplace_back();
        task.stage = stage_idx;
        task.module = block.module_name(relative);
        task.shape = linear_shape(block, relative);
      }
      ++stage_idx;
    }
  }
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

StageReader::~StageReader() {
  {
    const std::scoped_lock lock(mutex_);
    stops_ = true;
  }
  changed_.notify_all();
}

std::vector<weights::LinearPart> StageReader::next() {
  std::vector<weights::LinearPart> parts;
  std::unique_lock lock(mutex_);
  for (; next_taken_ < tasks_.size() && tasks_[next_taken_].stage == next_stage_; ++next_taken_) {
    Task& task = tasks_[next_taken_];
    if (threads_.empty()) {
      read(task);
    } else {
      changed_.wait(lock, [&] { return task.is_done; });
    }
    if (task.error) std::rethrow_exception(task.error);
    held_bytes_ -= task.bytes;
    parts.push_back(std::move(task.part));
  }
  ++next_stage_;
  lock.unlock();
  changed_.notify_all();
  return parts;
}

/// The stage that `next` waits for is read whatever it takes.
bool StageReader::may_begin(const Task& task) const {
  return task.stage == next_stage_ || held_bytes_ + task.bytes <= max_bytes_;
}

void StageReader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] {
      if (stops_ || next_task_ == tasks_.size()) return true;
      Task& task = tasks_[next_task_];
      task.bytes = static_cast<std::int64_t>(bytes_a_weight_ * static_cast<double>(task.shape.num_elements()));
      return may_begin(task);
    });
    if (stops_ || next_task_ == tasks_.size()) return;
    Task& task = tasks_[next_task_++];
    held_bytes_ += task.bytes;
    lock.unlock();
    read(task);
    lock.lock();
    held_bytes_ -= task.bytes;
    if (!task.error) {
      task.bytes = weights::size_bytes(task.part.weights);
      bytes_a_weight_ = static_cast<double>(task.bytes) / static_cast<double>(task.shape.num_elements());
    }
    held_bytes_ += task.bytes;
    task.is_done = true;
    changed_.notify_all();
  }
}

void StageReader::read(Task& task) const {
  try {
    task.part.weights = checkpoint_.linear(task.module, task.shape);
    task.part.bias = checkpoint_.bias(task.module, task.shape[0]);
  } catch (...) {
    task.error = std::current_exception();
  }
}

}  // namespace nibble::models
