#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
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

/// Suffixes of the tensors that make up one quantized module.
struct TensorSet {
  std::string_view mark;                   // only quantized modules have it: "qweight", "weight_scale"
  std::array<std::string_view, 3> others;  // what must stand beside it; unused places are empty
};

/// A disk format: how its config, its tensors and the canonical structs map to each other. The rows stand in
/// registry.cpp.
struct LinearFormat {
  std::string_view name;    // as `CheckpointWriter::add_linear` takes it: "gptq", "gptq_v2", "awq"
  std::string_view method;  // quant_method in config.json
  /// Every set that is a whole module. Formats may share a mark and differ in the rest.
  std::span<const TensorSet> tensor_sets;

  /// Normalises the object of the file. Errors: Unsupported naming key and value; InvalidArgument for wrong types.
  QuantizationConfig (*parse_config)(const Json& raw);
  /// The keys that the peers read, in the order their own writers have.
  Json (*make_config)(const QuantizationConfig& config);
  /// Errors: Corrupt, NotFound, Unsupported, naming tensors with expected and found shapes.
  weights::LinearWeights (*read)(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape);
  /// Errors: Unsupported with the reason and what to do; a struct that the format does not hold is named
  /// (expect_kind).
  std::vector<NamedTensor> (*write)(const weights::LinearWeights& weights);
  /// Name and text of files that old readers look for beside config.json; null for none.
  std::vector<std::pair<std::string, std::string>> (*make_side_files)(const QuantizationConfig& config) = nullptr;
};

/// Errors: Unsupported "dense f16 cannot be written as 'awq'".
[[noreturn]] void refuse_kind(const weights::LinearWeights& weights, std::string_view format);

/// The struct that `format` holds. Errors: as refuse_kind.
template <class Kind>
const Kind& expect_kind(const weights::LinearWeights& weights, std::string_view format) {
  if (const auto* kind = std::get_if<Kind>(&weights)) return *kind;
  refuse_kind(weights, format);
}

/// Whether a module is stored quantized in any format: a mark is there, or `weight` is F8_E4M3.
bool is_quantized(const ModuleTensors& tensors);

/// What is wrong with the tensors of one module, given their suffixes: "lacks qzeros", "has both qweight and weight".
/// Nothing where they are a whole set of some format, or not quantized.
std::optional<std::string> find_fault(std::span<const std::string_view> suffixes);

/// Errors: Unsupported where a scale in f16 or bf16 is infinite, NaN or zero.
void check_scales_to_write(const Tensor& scales);
/// f16 [groups, out], as AWQ and GPTQ store scales. Errors: Unsupported where one overflows or vanishes.
Tensor scales_to_write(const weights::GroupedIntWeights& weights);

/// modules_to_not_convert with lm_head, unless that was quantized: peers make a module of it also where it is tied, and
/// quantize what they are not told to leave alone.
std::vector<std::string> modules_kept_float(const QuantizationConfig& config);

/// Every disk format of quantized linears.
std::span<const LinearFormat> linear_formats();
/// By `name`. Errors: InvalidArgument naming the known ones.
const LinearFormat& find_linear_format(std::string_view name);
/// By `method`; nullptr where nibble does not read it.
const LinearFormat* find_linear_format_of_method(std::string_view method);

}  // namespace nibble::formats
