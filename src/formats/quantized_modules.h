#pragma once

#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace nibble::formats {

/// A linear that is stored quantized, and its size as its own tensors tell it.
struct QuantizedModule {
  std::string name;
  Shape shape;  // [out, in]
};

/// Every quantized linear of a checkpoint, sorted by name; none for GGUF files, whose blocks are single tensors. Reads
/// names, dtypes and shapes only (and `weight_shape`, two numbers a module).
/// Errors: Corrupt naming a tensor whose shape cannot be.
std::vector<QuantizedModule> quantized_modules(const Checkpoint& checkpoint);

/// "model.layers.0.mlp.up_proj" of "model.layers.0.mlp.up_proj.qweight"; empty for a name without a dot.
std::string module_of_tensor(std::string_view tensor);

}  // namespace nibble::formats
