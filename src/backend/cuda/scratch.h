#pragma once

#include <cstddef>

#include "core/buffer.h"

namespace nibble::backend::cuda {

/// Device memory that linears of a backend share, one product after the other; as large as any of them needs. It moves
/// when it grows: what is captured into a graph is reserved before.
class Scratch {
 public:
  /// Errors: OutOfMemory.
  void reserve(std::size_t size_bytes);
  void* data() { return buffer_.data(); }

 private:
  Buffer buffer_;
};

}  // namespace nibble::backend::cuda
