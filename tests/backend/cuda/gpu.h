#pragma once

#include "backend/cuda/device.h"
#include "core/error.h"

namespace nibble::backend {

/// Tests of kernels are skipped without.
inline bool has_gpu() {
  try {
    return !cuda::list_devices().empty();
  } catch (const Error&) {
    return false;
  }
}

}  // namespace nibble::backend
