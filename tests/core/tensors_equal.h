#pragma once

#include <cstring>

#include "core/tensor.h"

namespace nibble {

/// Same dtype, shape and bytes. Contiguous views only.
inline bool equal(TensorView a, TensorView b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace nibble
