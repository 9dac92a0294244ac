#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/tensor.h"
#include "formats/checkpoint.h"
#include "models/block.h"
#include "weights/linear_weights.h"

namespace nibble::models {

/// Reads the linears of blocks ahead of whoever packs them, several at a time, each on one thread: bringing a quantized
/// linear from its disk format into canonical form takes longer than sending it to a GPU. Results come in the order of
/// the blocks' stages. One thread calls `next`.
class StageReader {
 public:
  /// `num_threads` 0: `next` reads by itself. Linears read and not yet taken hold about `max_bytes` at most (a stage
  /// that is larger comes alone). `checkpoint` and `blocks` outlive the reader.
  StageReader(const formats::Checkpoint& checkpoint, const std::vector<BlockSpec>& blocks, int num_threads,
              std::int64_t max_bytes);
  ~StageReader();
  StageReader(const StageReader&) = delete;
  StageReader& operator=(const StageReader&) = delete;

  /// The linears of the next stage, with their biases. Errors: whatever the checkpoint reports.
  std::vector<weights::LinearPart> next();

 private:
  struct Task {
    std::int64_t stage = 0;
    std::string module;
    Shape shape;
    std::int64_t bytes = 0;  // estimated while it is read
    weights::LinearPart part;
    std::exception_ptr error;
    bool is_done = false;
  };

  void work();
  void read(Task& task) const;
  bool may_begin(const Task& task) const;

  const formats::Checkpoint& checkpoint_;
  std::vector<Task> tasks_;
  std::int64_t max_bytes_;

  std::mutex mutex_;  // guards what follows and the tasks' results
  std::condition_variable changed_;
  std::size_t next_task_ = 0;    // to be read
  std::size_t next_taken_ = 0;   // to be handed out
  std::int64_t next_stage_ = 0;  // to be handed out
  std::int64_t held_bytes_ = 0;  // of linears in work or read
  double bytes_a_weight_ = 2;    // of the last linear read
  bool stops_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace nibble::models
