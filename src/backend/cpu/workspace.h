#pragma once

#include <cstddef>
#include <vector>

#include "core/buffer.h"
#include "core/thread_pool.h"

namespace nibble::backend::cpu {

/// The pool and what its threads need beside their registers. Owned by the backend, shared by its linears, used by the
/// one thread that runs steps. Scratch grows to the largest size asked for and stays.
class Workspace {
 public:
  explicit Workspace(int num_threads) : pool(num_threads), scratch_(static_cast<std::size_t>(pool.num_threads())) {}

  ThreadPool pool;

  /// Makes every thread's scratch at least this large. Outside of loops only.
  void reserve_scratch(std::size_t size_bytes) {
    if (size_bytes <= scratch_bytes_) return;
    for (Buffer& buffer : scratch_) buffer = Buffer::host(size_bytes);
    scratch_bytes_ = size_bytes;
  }
  std::byte* scratch(int thread) { return static_cast<std::byte*>(scratch_[static_cast<std::size_t>(thread)].data()); }

 private:
  std::vector<Buffer> scratch_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace nibble::backend::cpu
