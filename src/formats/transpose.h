#pragma once

#include "core/tensor.h"

namespace nibble::formats {

/// A copy of a host matrix with rows and columns exchanged; any dtype of 1, 2, 4 or 8 bytes.
Tensor transpose(TensorView matrix);
/// The same into `to` [cols, rows], which may have another dtype of as many bytes a row.
void transpose(TensorView matrix, MutableTensorView to);

}  // namespace nibble::formats
