#include "formats/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "core/file.h"
#include "formats/checkpoint.h"
#include "formats/linear_format.h"
#include "formats/quantization_config.h"
#include "formats/quantized_modules.h"

namespace nibble::formats {
namespace {

/// What a module's reader takes up; anything else beside it (bias, output_scale) is copied as it is.
constexpr std::array<std::string_view, 19> kConvertedSuffixes{
    "qweight",           "qzeros",       "scales",       "g_idx",       "weight",       "weight_packed",
    "weight_scale",      "weight_shape", "weight_g_idx", "input_scale", "lookup_table", "weight_scale_inv",
    "weight_zero_point", "rows",         "cols",         "vals",        "startrows",    "full_rows",
    "full_row_indices"};

/// The tensors of one module as they were written, to be read back.
class WrittenModule final : public Checkpoint {
 public:
  WrittenModule(std::string_view module, const std::vector<NamedTensor>& tensors) {
    for (const NamedTensor& named : tensors)
      tensors_.emplace(fmt::format("{}.{}", module, named.suffix), named.tensor.view());
  }

  const std::filesystem::path& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const std::optional<QuantizationConfig>& quantization() const override { return quantization_; }
  std::optional<std::string> side_file(std::string_view) const override { return std::nullopt; }
  std::vector<std::string> tensor_names() const override { return {}; }
  bool contains(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  TensorView tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(ErrorCode::NotFound, fmt::format("no tensor {}", name));
    return found->second;
  }
  weights::LinearWeights linear(std::string_view, const Shape&) const override { return {}; }
  Tensor bias(std::string_view, std::int64_t) const override { return {}; }
  void drop_pages(std::string_view) const override {}
  void release(std::string_view) const override {}
  std::int64_t size_bytes() const override { return 0; }

 private:
  std::filesystem::path path_;
  Json config_;
  std::optional<QuantizationConfig> quantization_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  if (a.is_empty() || b.is_empty()) return a.is_empty() == b.is_empty();
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.view().data(), b.view().data(), a.size_bytes()) == 0;
}

/// Floats of any width that stand for the same numbers, signs of zeros included.
bool same_floats(const Tensor& a, const Tensor& b) {
  return same_bytes(to_dtype(a, DType::F32), to_dtype(b, DType::F32));
}

/// What differs, or nullptr.
const char* difference(const weights::GroupedIntWeights& a, const weights::GroupedIntWeights& b) {
  if (a.bits != b.bits) return "bits";
  if (!same_bytes(a.codes, b.codes)) return "codes";
  if (a.num_groups() != b.num_groups()) return "groups";
  if (!same_floats(a.scales, b.scales)) return "scales, which have more digits than the format's f16";
  if (!same_bytes(a.zeros, b.zeros)) return "zero points";
  return same_bytes(a.g_idx, b.g_idx) ? nullptr : "g_idx";
}

const char* difference(const weights::Fp8Weights& a, const weights::Fp8Weights& b) {
  if (!same_bytes(a.weight, b.weight)) return "codes";
  if (a.block_size != b.block_size || !same_bytes(a.scale, b.scale)) return "scales";
  return a.input_scale == b.input_scale ? nullptr : "input_scale";
}

const char* difference(const weights::CodebookWeights& a, const weights::CodebookWeights& b) {
  if (!same_bytes(a.codes, b.codes)) return "codes";
  if (!same_floats(a.lookup_table, b.lookup_table)) return "lookup_table";
  return same_bytes(a.rows, b.rows) && same_bytes(a.cols, b.cols) && same_bytes(a.vals, b.vals) ? nullptr : "outliers";
}

const char* difference(const weights::DenseWeights&, const weights::DenseWeights&) {
  return "form";
}

const char* difference(const weights::LinearWeights& a, const weights::LinearWeights& b) {
  if (a.index() != b.index()) return "form";
  return std::visit([&](const auto& kind) { return difference(kind, std::get<std::decay_t<decltype(kind)>>(b)); }, a);
}

/// Side files of the model; weights, indexes and quantization configs are written anew.
std::vector<std::pair<std::string, std::string>> copy_texts(const std::filesystem::path& folder) {
  constexpr std::array<std::string_view, 9> kLeftOut{".safetensors", ".bin", ".pt",      ".pth", ".gguf",
                                                     ".index.json",  ".h5",  ".msgpack", ".onnx"};
  constexpr std::array<std::string_view, 4> kWrittenAnew{"config.json", "quantize_config.json", "quant_config.json",
                                                         "nibble_report.json"};
  std::vector<std::pair<std::string, std::string>> texts;
  if (!std::filesystem::is_directory(folder)) return texts;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const auto ends = [&](std::string_view suffix) { return name.ends_with(suffix); };
    if (!entry.is_regular_file() || name.starts_with(".") || std::ranges::any_of(kLeftOut, ends)) continue;
    if (std::ranges::find(kWrittenAnew, name) != kWrittenAnew.end()) continue;
    texts.emplace_back(name, read_text_file(entry.path()));
  }
  std::ranges::sort(texts);
  return texts;
}

class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options)
      : options_(options),
        input_(Checkpoint::open(options.input)),
        format_(find_linear_format(options.format)),
        modules_(quantized_modules(*input_)) {
    if (modules_.empty()) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("{}: {}; convert takes AWQ, GPTQ, compressed-tensors, FP8 and SqueezeLLM checkpoints",
                              options.input.string(),
                              options.input.extension() == ".gguf" ? "is a GGUF file (use nibble import)"
                                                                   : "holds no quantized linears"));
    }
  }

  ConvertReport run() {
    target_ = target_config();
    CheckpointWriter writer(options_.output);
    std::set<std::string, std::less<>> converted;
    for (const QuantizedModule& module : modules_) {
      convert_module(module, writer);
      converted.insert(module.name);
      options_.on_module(static_cast<std::int64_t>(converted.size()), static_cast<std::int64_t>(modules_.size()));
    }
    for (const std::string& name : input_->tensor_names()) {
      const std::string module = module_of_tensor(name);
      const std::string_view suffix = std::string_view(name).substr(module.size() + (module.empty() ? 0 : 1));
      const bool is_part = std::ranges::find(kConvertedSuffixes, suffix) != kConvertedSuffixes.end();
      if (is_part && converted.contains(module)) continue;
      writer.add(name, input_->tensor(name));
      input_->drop_pages(module);
    }
    writer.finish(files());
    return {input_->quantization()->method, static_cast<std::int64_t>(modules_.size()), writer.total_bytes()};
  }

 private:
  /// What holds for the checkpoint as a whole; target_.modules comes with the modules.
  QuantizationConfig target_config() const {
    QuantizationConfig target = *input_->quantization();
    const bool same_method = target.method == format_.method;
    if (!same_method) {
      Json raw{{"meta", {{"converted_from", target.method}}}};
      const bool has_kv_scales = target.raw.is_object() && target.raw.contains("kv_cache_scheme");
      if (has_kv_scales) raw["kv_cache_scheme"] = target.raw["kv_cache_scheme"];
      target.raw = std::move(raw);
    }
    target.modules_to_not_convert = same_method ? target.modules_to_not_convert : float_modules();
    if (target.method == "fp8" || format_.method == "fp8") target.group_size = -1;
    return target;
  }

  /// Linears that stay float: matrices that are neither quantized nor an embedding. lm_head is float in every format
  /// unless its config says otherwise.
  std::vector<std::string> float_modules() const {
    std::vector<std::string> names;
    for (const std::string& name : input_->tensor_names()) {
      if (!name.ends_with(".weight")) continue;
      const std::string module = module_of_tensor(name);
      if (module == "lm_head" || module.find("embed") != std::string::npos) continue;
      if (is_quantized({*input_, module}) || input_->tensor(name).shape().rank() != 2) continue;
      names.push_back(module);
    }
    return names;
  }

  void convert_module(const QuantizedModule& module, CheckpointWriter& writer) {
    try {
      const weights::LinearWeights weights = input_->linear(module.name, module.shape);
      ModuleScheme scheme = scheme_of(module.name, weights, input_->quantization()->group_size);
      const std::vector<NamedTensor> written = format_.write(weights);
      expect_same(module, weights, scheme, written);
      for (const NamedTensor& named : written)
        writer.add(fmt::format("{}.{}", module.name, named.suffix), named.tensor);
      target_.modules.push_back(std::move(scheme));
      num_weights_ += module.shape.num_elements();
      if (const auto* codebook = std::get_if<weights::CodebookWeights>(&weights)) {
        num_outliers_ += codebook->vals.num_elements();
      }
    } catch (const Error& error) {
      throw error.in(module.name);
    }
    input_->release(module.name);
  }

  /// Reads back what was made for the module. Errors: Unsupported naming what the format could not hold.
  void expect_same(const QuantizedModule& module, const weights::LinearWeights& weights, const ModuleScheme& scheme,
                   const std::vector<NamedTensor>& written) const {
    QuantizationConfig alone = target_;
    alone.bits = scheme.bits;
    alone.group_size = scheme.group_size;
    alone.sym = scheme.sym;
    alone.desc_act = scheme.desc_act;
    alone.modules = {scheme};
    alone.modules_to_not_convert.clear();
    const QuantizationConfig read_config = parse_quantization_config(make_quantization_config(format_.name, alone));
    const WrittenModule checkpoint(module.name, written);
    const weights::LinearWeights back = format_.read({checkpoint, module.name}, read_config, module.shape);
    if (const char* what = difference(weights, back)) {
      throw Error(ErrorCode::Unsupported,
                  fmt::format("{} cannot hold its {}; nothing was converted", format_.name, what));
    }
  }

  CheckpointFiles files() {
    describe_whole();
    CheckpointFiles files;
    files.config = input_->config();
    files.config.erase("compression_config");
    files.config["quantization_config"] = make_quantization_config(format_.name, target_);
    files.texts = make_quantization_side_files(format_.name, target_);
    for (auto& text : copy_texts(options_.input)) files.texts.push_back(std::move(text));
    return files;
  }

  /// The scheme that most modules have stands for the checkpoint.
  void describe_whole() {
    const auto count = [&](const ModuleScheme& scheme) {
      return std::ranges::count_if(target_.modules, [&](const ModuleScheme& other) { return scheme.is_like(other); });
    };
    const ModuleScheme& usual = *std::ranges::max_element(target_.modules, {}, count);
    target_.bits = usual.bits;
    target_.group_size = usual.group_size;
    target_.sym = std::ranges::all_of(target_.modules, &ModuleScheme::sym);
    target_.desc_act = std::ranges::any_of(target_.modules, &ModuleScheme::desc_act);
    if (usual.kind != ModuleScheme::Kind::Codebook) return;
    // Published files do not say it.
    if (!target_.raw.is_object()) target_.raw = Json::object();
    target_.raw["sparsity"] = static_cast<double>(num_outliers_) / static_cast<double>(num_weights_);
  }

  const ConvertOptions& options_;
  std::unique_ptr<Checkpoint> input_;
  const LinearFormat& format_;
  std::vector<QuantizedModule> modules_;
  QuantizationConfig target_;
  std::int64_t num_weights_ = 0;  // of the linears converted so far
  std::int64_t num_outliers_ = 0;
};

}  // namespace

ConvertReport convert_checkpoint(const ConvertOptions& options) {
  return Conversion(options).run();
}

}  // namespace nibble::formats
