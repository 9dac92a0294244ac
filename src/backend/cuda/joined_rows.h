#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "core/tensor.h"

/// Rows of a fused linear's parts, one after the other in one tensor on the device.
namespace nibble::backend::cuda {

/// All [rows, cols] of one dtype and cols.
Tensor join_rows(std::span<const TensorView> parts, cudaStream_t stream);

/// Scales or tables in f16 where all parts are f16, else in f32.
Tensor join_scales(std::span<const TensorView> parts, cudaStream_t stream);

}  // namespace nibble::backend::cuda
