#pragma once

#include <memory>
#include <span>

#include "backend/backend.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/float_block.h"

namespace nibble::quantize {

/// The linears of one stage as one fused backend::Linear over BLAS: f32 weights, f32 activations on the host. A
/// backend's own kernels are made for serving: packed, and slower in f32.
/// `weights` [linears] f32 [out, in] each (the float ones, or what the quantized ones dequantize to); biases are the
/// linears' own.
std::unique_ptr<backend::Linear> make_calibration_linear(std::span<const FloatLinear> linears,
                                                         std::span<const Tensor> weights, ThreadPool& pool);
/// With the linears' own float weights.
std::unique_ptr<backend::Linear> make_calibration_linear(std::span<const FloatLinear> linears, ThreadPool& pool);

}  // namespace nibble::quantize
