#include "formats/quantized_modules.h"

#include <fmt/format.h>

#include "formats/linear_format.h"

namespace nibble::formats {
namespace {

[[noreturn]] void refuse_shape(const std::string& tensor, const Shape& shape) {
  throw Error(ErrorCode::Corrupt,
              fmt::format("{}: shape {} cannot be that of a quantized linear", tensor, shape.to_string()));
}

/// Sizes of a matrix with at least one row and column.
Shape matrix_shape(const ModuleTensors& tensors, std::string_view suffix) {
  const Shape shape = tensors.get(suffix).shape();
  if (shape.rank() != 2 || shape[0] == 0 || shape[1] == 0) refuse_shape(tensors.name(suffix), shape);
  return shape;
}

/// Bits of codes of which `count` fill `words` 32-bit words.
std::int64_t bits_of(std::int64_t words, std::int64_t count, const std::string& tensor, const Shape& shape) {
  if (count <= 0 || words * 32 / count < 1 || words * 32 / count > 8) refuse_shape(tensor, shape);
  return words * 32 / count;
}

/// qweight [in*bits/32, out] of GPTQ and SqueezeLLM: the tensor beside it tells the bits.
Shape shape_of_columns(const ModuleTensors& tensors) {
  const Shape qweight = matrix_shape(tensors, "qweight");
  const std::int64_t out_features = qweight[1];
  std::int64_t bits = 0;
  if (tensors.contains("lookup_table")) {
    const Shape table = matrix_shape(tensors, "lookup_table");
    while (bits < 8 && std::int64_t{1} << bits < table[1]) ++bits;
  } else {
    const Shape qzeros = matrix_shape(tensors, "qzeros");
    bits = bits_of(qzeros[1], out_features, tensors.name("qzeros"), qzeros);
  }
  if (bits == 0) refuse_shape(tensors.name("qweight"), qweight);
  return {out_features, qweight[0] * 32 / bits};
}

/// Without weight_shape (32 bits a word, no gaps) the scale of each group must do.
Shape shape_of_packed(const ModuleTensors& tensors) {
  const Shape packed = matrix_shape(tensors, "weight_packed");
  if (!tensors.contains("weight_shape")) refuse_shape(tensors.name("weight_packed") + " without weight_shape", packed);
  const TensorView stored = tensors.get("weight_shape");
  if (stored.shape() != Shape{2} || (stored.dtype() != DType::I64 && stored.dtype() != DType::I32)) {
    refuse_shape(tensors.name("weight_shape"), stored.shape());
  }
  const auto at = [&](std::size_t i) {
    return stored.dtype() == DType::I64 ? stored.span<std::int64_t>()[i] : stored.span<std::int32_t>()[i];
  };
  if (at(0) != packed[0] || at(1) <= 0 || at(1) > checked_multiply(packed[1], 32)) {
    refuse_shape(tensors.name("weight_packed"), packed);
  }
  return {at(0), at(1)};
}

Shape shape_of(const ModuleTensors& tensors, std::string_view method) {
  if (tensors.contains("weight_packed")) return shape_of_packed(tensors);
  if (!tensors.contains("qweight")) return matrix_shape(tensors, "weight");
  if (method != "awq") return shape_of_columns(tensors);
  const Shape qweight = matrix_shape(tensors, "qweight");
  return {checked_multiply(qweight[1], 8), qweight[0]};
}

}  // namespace

std::string module_of_tensor(std::string_view tensor) {
  const std::size_t dot = tensor.rfind('.');
  return std::string(dot == std::string_view::npos ? std::string_view{} : tensor.substr(0, dot));
}

std::vector<QuantizedModule> quantized_modules(const Checkpoint& checkpoint) {
  std::vector<QuantizedModule> modules;
  if (!checkpoint.quantization() || checkpoint.quantization()->method == "gguf") return modules;
  std::string last;
  for (const std::string& name : checkpoint.tensor_names()) {
    std::string module = module_of_tensor(name);
    if (module.empty() || module == last) continue;
    last = module;
    const ModuleTensors tensors(checkpoint, module);
    const bool is_listed = !modules.empty() && modules.back().name == module;
    if (is_listed || !is_quantized(tensors)) continue;
    modules.push_back({std::move(module), shape_of(tensors, checkpoint.quantization()->method)});
  }
  return modules;
}

}  // namespace nibble::formats
