#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "formats/checkpoint.h"
#include "weights/linear_weights.h"

namespace nibble::formats {

/// The stored tensors of one linear module, by suffix: "qweight", "scales", …
class ModuleTensors {
 public:
  ModuleTensors(const Checkpoint& checkpoint, std::string_view module) : checkpoint_(checkpoint), module_(module) {}

  const std::string& module() const { return module_; }
  std::string name(std::string_view suffix) const { return module_ + "." + std::string(suffix); }
  bool contains(std::string_view suffix) const { return checkpoint_.contains(name(suffix)); }
  /// Errors: NotFound naming the tensor.
  TensorView get(std::string_view suffix) const { return checkpoint_.tensor(name(suffix)); }
  /// `get`, with dtype and shape checked. Errors: Corrupt with tensor, expected and found.
  TensorView get(std::string_view suffix, DType dtype, const Shape& shape) const;
  /// `get` of a float tensor of this shape.
  TensorView get_float(std::string_view suffix, const Shape& shape) const;

 private:
  const Checkpoint& checkpoint_;
  std::string module_;
};

/// The module's bias as f32 [out_features]; empty where there is none or all of it is zero, as AutoGPTQ writes for
/// layers without one.
Tensor read_bias(const ModuleTensors& tensors, std::int64_t out_features);

/// One tensor of a module to be written.
struct NamedTensor {
  std::string suffix;
  Tensor tensor;
};

/// A disk format of GroupedIntWeights: how its config, its tensors and the canonical struct map to each other. The
/// rows stand in registry.cpp.
struct LinearFormat {
  std::string_view name;    // as `CheckpointWriter::add_linear` takes it: "gptq", "gptq_v2", "awq"
  std::string_view method;  // quant_method in config.json

  /// Normalises the object of the file. Errors: Unsupported naming key and value; InvalidArgument for wrong types.
  QuantizationConfig (*parse_config)(const Json& raw);
  /// The keys that the peers read, in the order their own writers have.
  Json (*make_config)(const QuantizationConfig& config);
  /// Errors: Corrupt, NotFound, Unsupported, naming tensors with expected and found shapes.
  weights::LinearWeights (*read)(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape);
  /// Errors: Unsupported with the reason and what to do.
  std::vector<NamedTensor> (*write)(const weights::GroupedIntWeights& weights);
};

/// f16 [groups, out], as both formats store scales. Errors: Unsupported where one overflows or vanishes.
Tensor scales_to_write(const weights::GroupedIntWeights& weights);

/// Every disk format of quantized linears.
std::span<const LinearFormat> linear_formats();
/// By `name`. Errors: InvalidArgument naming the known ones.
const LinearFormat& find_linear_format(std::string_view name);
/// By `method`; nullptr where nibble does not read it.
const LinearFormat* find_linear_format_of_method(std::string_view method);

}  // namespace nibble::formats
