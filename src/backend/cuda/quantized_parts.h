#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/tensor.h"

namespace nibble::backend::cuda {

/// Rows of codes as kernels read them: each padded with zeros to whole chunks of 32 codes, on the device.
///
/// codes  u8 [rows, row_bytes], row_bytes at least ceil(in_features * bits / 8)
Tensor upload_codes(TensorView codes, std::int64_t in_features, std::int32_t bits, cudaStream_t stream);

inline std::int64_t num_chunks(std::int64_t in_features) {
  return (in_features + 31) / 32;
}

}  // namespace nibble::backend::cuda
