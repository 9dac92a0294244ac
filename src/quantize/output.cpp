#include "quantize/output.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <utility>

#include "formats/quantization_config.h"

namespace nibble::quantize {
namespace {

constexpr const char* kSideFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                      "generation_config.json", "chat_template.jinja"};

}  // namespace

Output::Output(const formats::Checkpoint& source, const Plan& plan, const PipelineOptions& options,
               const Journal& journal)
    : source_(source),
      plan_(plan),
      options_(options),
      format_(plan.format),
      writer_(options.output, journal.scratch(), journal.written_tensors()) {
  for (const JournalEntry& entry : journal.entries()) {
    schemes_.insert(schemes_.end(), entry.schemes.begin(), entry.schemes.end());
  }
  num_synced_schemes_ = schemes_.size();
}

void Output::sync(JournalEntry& entry) {
  entry.tensors = writer_.sync();
  entry.schemes.assign(schemes_.begin() + static_cast<std::ptrdiff_t>(num_synced_schemes_), schemes_.end());
  num_synced_schemes_ = schemes_.size();
}

void Output::add_stage(const std::vector<FloatLinear>& linears, const std::vector<weights::LinearWeights>& quantized,
                       const StageChoice& choice) {
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const FloatLinear& linear = linears[i];
    writer_.add_linear(linear.name, quantized[i], choice.is_skipped ? "dense" : format_);
    if (!choice.is_skipped) {
      schemes_.push_back(formats::scheme_of(linear.name, quantized[i], choice.options.group_size));
    }
    if (!linear.bias.is_empty()) add_half(linear.name + ".bias", linear.bias);
    written_.insert({linear.name + ".weight", linear.name + ".bias"});
  }
}

void Output::add_kv_scales(const FloatLinear& o_proj, const StageInputs& inputs) {
  const std::string attention = o_proj.name.substr(0, o_proj.name.rfind('.'));
  const float key_scale = weights::fp8_scale(inputs.key_range);
  const float value_scale = weights::fp8_scale(inputs.value_range);
  writer_.add(attention + ".k_scale", {&key_scale, DType::F32, {1}});
  writer_.add(attention + ".v_scale", {&value_scale, DType::F32, {1}});
}

void Output::add_norms(const FloatBlock& block) {
  add_half(block.spec.module_name(block.spec.input_norm) + ".weight", block.input_norm);
  add_half(block.spec.module_name(block.spec.post_attention_norm) + ".weight", block.post_attention_norm);
}

void Output::skip(const models::BlockSpec& spec) {
  for (const models::Stage& stage : spec.stages) {
    for (const std::string& linear : stage.linears) {
      written_.insert({spec.module_name(linear) + ".weight", spec.module_name(linear) + ".bias"});
    }
  }
  for (const std::string& norm : {spec.input_norm, spec.post_attention_norm}) {
    written_.insert(spec.module_name(norm) + ".weight");
  }
}

void Output::add_rest() {
  for (const std::string& name : source_.tensor_names()) {
    if (!written_.contains(name)) add_half(name, source_.tensor(name));
  }
}

void Output::finish(const Report& report) {
  const formats::QuantizationConfig quantization = make_quantization();
  formats::CheckpointFiles files;
  files.config = make_config(quantization);
  files.texts = formats::make_quantization_side_files(format_, quantization);
  for (const char* name : kSideFiles) {
    if (auto text = source_.side_file(name)) files.texts.emplace_back(name, std::move(*text));
  }
  files.texts.emplace_back(kReportFile, to_json(report).dump(2) + "\n");
  files.texts.emplace_back(kReportPage, render_html(report));
  writer_.finish(files);
}

void Output::add_half(const std::string& name, TensorView tensor) {
  const Tensor half = to_dtype(tensor, DType::F16);
  for (const Half value : half.span<Half>()) {
    if (std::isfinite(to_float(value))) continue;
    throw Error(ErrorCode::Unsupported, name + ": holds a value that is not finite in f16, whose largest is 65504");
  }
  writer_.add(name, half);
  written_.insert(name);
}

formats::QuantizationConfig Output::make_quantization() const {
  formats::QuantizationConfig quantization = make_method_quantization();
  quantization.modules = schemes_;
  for (std::string& module : skipped_modules()) quantization.modules_to_not_convert.push_back(std::move(module));
  return quantization;
}

std::vector<std::string> Output::skipped_modules() const {
  std::vector<std::string> modules;
  for (std::size_t b = 0; b < plan_.blocks.size(); ++b) {
    for (std::size_t s = 0; s < plan_.stages[b].size(); ++s) {
      if (!plan_.stages[b][s].is_skipped) continue;
      for (const std::string& linear : plan_.blocks[b].stages[s].linears) {
        modules.push_back(plan_.blocks[b].module_name(linear));
      }
    }
  }
  return modules;
}

formats::QuantizationConfig Output::make_method_quantization() const {
  switch (plan_.method->makes) {
    case Makes::Fp8: return fp8_config();
    case Makes::Codebook: return codebook_config();
    case Makes::GroupedInt: break;
  }
  return grouped_int_config();
}

formats::QuantizationConfig Output::codebook_config() const {
  const MethodOptions& method = options_.method_options;
  formats::QuantizationConfig quantization;
  quantization.bits = method.grid.bits;
  quantization.modules_to_not_convert = {std::string(plan_.architecture->lm_head)};
  quantization.raw = {{"sparsity", method.squeezellm.sparsity},
                      {"meta", {{"quantizer", {"nibble"}}, {"method", std::string(plan_.method->name)}}}};
  return quantization;
}

formats::QuantizationConfig Output::grouped_int_config() const {
  const MethodOptions& method = options_.method_options;
  formats::QuantizationConfig quantization;
  quantization.bits = method.grid.bits;
  quantization.group_size = method.group_size;
  quantization.sym = method.grid.symmetry == Symmetry::Symmetric;
  quantization.desc_act = method.group_index == GroupIndex::DescAct && method.group_size != -1;
  quantization.raw = {{"damp_percent", method.damp_percent},
                      {"static_groups", !quantization.desc_act},
                      {"true_sequential", true},
                      {"meta", {{"quantizer", {"nibble"}}, {"method", std::string(plan_.method->name)}}}};
  return quantization;
}

formats::QuantizationConfig Output::fp8_config() const {
  const Fp8Options& fp8 = options_.method_options.fp8;
  formats::QuantizationConfig quantization;
  quantization.modules_to_not_convert = {std::string(plan_.architecture->lm_head)};
  quantization.raw = {{"activation_scheme", fp8.activations == ActivationScheme::Static ? "static" : "dynamic"}};
  if (fp8.granularity == weights::Fp8Granularity::PerBlock) {
    quantization.raw["weight_block_size"] = {weights::kFp8BlockSize, weights::kFp8BlockSize};
  }
  if (fp8.kv_cache_scales == KvCacheScales::Calibrated) {
    quantization.raw["kv_cache_scheme"] = {
        {"num_bits", 8}, {"type", "float"}, {"strategy", "tensor"}, {"dynamic", false}, {"symmetric", true}};
  }
  return quantization;
}

Json Output::make_config(const formats::QuantizationConfig& quantization) const {
  Json config = source_.config();
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (config.contains(key)) config[key] = "float16";
  }
  config["torch_dtype"] = "float16";
  config["quantization_config"] = formats::make_quantization_config(format_, quantization);
  return config;
}

}  // namespace nibble::quantize
