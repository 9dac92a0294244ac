#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace nibble::backend {

/// Parts dequantized to f32 and stacked; y = W x + b with one f32 dot product a cell. Inputs of FP8 parts are rounded
/// first where the options say so.
std::unique_ptr<Linear> make_reference_linear(std::vector<weights::LinearPart> parts, const BackendOptions& options,
                                              ThreadPool& pool);

}  // namespace nibble::backend
