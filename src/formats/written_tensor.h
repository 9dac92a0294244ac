#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace nibble::formats {

/// A tensor that a CheckpointWriter has put into a shard, behind those that came before it there.
struct WrittenTensor {
  std::string name;
  DType dtype = DType::F16;
  Shape shape;
  std::int64_t shard = 0;  // 0, 1, …

  std::int64_t size_bytes() const {
    return checked_multiply(shape.num_elements(), static_cast<std::int64_t>(nibble::size_bytes(dtype)));
  }
};

}  // namespace nibble::formats
