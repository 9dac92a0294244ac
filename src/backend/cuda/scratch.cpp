#include "backend/cuda/scratch.h"

#include "backend/cuda/device.h"

namespace nibble::backend::cuda {

void Scratch::reserve(std::size_t size_bytes) {
  if (buffer_.size_bytes() >= size_bytes) return;
  buffer_ = {};  // first: both may not fit
  buffer_ = device_buffer(size_bytes);
}

}  // namespace nibble::backend::cuda
