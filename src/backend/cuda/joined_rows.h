#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "core/tensor.h"

/// Rows of a fused linear's parts, one after the other in one tensor on the device.
namespace nibble::backend::cuda {

/// All [rows, cols] of one dtype and cols, on the host or on the device.
Tensor join_rows(std::span<const TensorView> parts, cudaStream_t stream);

/// Rows of bytes, on the host or the device, as u8 [rows up to a multiple of row_multiple, row_bytes], zeros where
/// there is nothing.
struct PaddedRows {
  std::int64_t row_bytes = 0;
  std::int64_t row_multiple = 1;
};
Tensor join_padded_rows(std::span<const TensorView> parts, const PaddedRows& padded, cudaStream_t stream);

/// Scales or tables in f16 where all parts are f16, else in f32.
Tensor join_scales(std::span<const TensorView> parts, cudaStream_t stream);

}  // namespace nibble::backend::cuda
