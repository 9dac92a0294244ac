#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/descent.h"
#include "quantize/gptq.h"
#include "weights/linear_weights.h"

namespace nibble::quantize {

/// GPTQ's codes as a start, then coordinate descent on codes and scales under the same Hessian (`gram` plus the
/// factor's damping). `factor` comes from `gram`, with columns by falling diagonal; weight f32 [out, in].
weights::GroupedIntWeights gptq_with_descent(Matrix<const float> weight, Matrix<const float> gram,
                                             const GptqFactor& factor, std::int64_t group_size,
                                             const GridFormat& format, const DescentSchedule& schedule,
                                             ThreadPool& pool);

}  // namespace nibble::quantize
