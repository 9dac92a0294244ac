#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace nibble::backend {

/// Parts dequantized to f32 and stacked; y = W x + b with one f32 dot product a cell.
std::unique_ptr<Linear> make_reference_linear(std::vector<weights::LinearPart> parts, ThreadPool& pool);

}  // namespace nibble::backend
