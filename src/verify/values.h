#pragma once

#include <optional>
#include <string>

#include "core/tensor.h"
#include "verify/finding.h"

namespace nibble::verify {

/// What is wrong with the numbers of one stored float tensor: NaN, infinity; in scales also zero, the sign where it
/// must be positive, and f16 so small that hardly a digit is left. Names the element. Nothing for other dtypes.
std::optional<Finding> check_values(const std::string& name, TensorView tensor);

}  // namespace nibble::verify
