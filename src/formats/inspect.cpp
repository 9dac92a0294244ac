#include "formats/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/file.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/linear_format.h"
#include "formats/quantized_modules.h"

namespace nibble::formats {
namespace {

std::int64_t product(const std::vector<std::int64_t>& sizes) {
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) count = checked_multiply(count, size);
  return count;
}

void add_linear(ModelSummary& summary, const LinearSummary& linear) {
  const auto found = std::ranges::find(summary.linears, linear.form, &LinearSummary::form);
  LinearSummary& sum =
      found != summary.linears.end() ? *found : summary.linears.emplace_back(LinearSummary{.form = linear.form});
  sum.num_linears += 1;
  sum.num_weights += linear.num_weights;
  sum.size_bytes += linear.size_bytes;
}

std::string integer_form(std::int64_t bits, std::int64_t in_features, std::int64_t num_groups, bool sym) {
  const std::string group = num_groups == 1 ? "per channel" : fmt::format("g{}", in_features / num_groups);
  return fmt::format("int{} {} {}", bits, group, sym ? "sym" : "asym");
}

std::string scaled_form(const ModuleTensors& tensors, const Shape& shape) {
  const bool is_block = tensors.contains("weight_scale_inv");
  const Shape scale = tensors.get(is_block ? "weight_scale_inv" : "weight_scale").shape();
  const bool is_float = tensors.get("weight").dtype() == DType::F8E4M3;
  const std::int64_t count = scale.num_elements();
  const char* sharing = count == 1 ? "per tensor" : count == shape[0] ? "per channel" : is_float ? "block" : "grouped";
  return fmt::format("{} {}{}", is_float ? "fp8" : "int8", sharing,
                     tensors.contains("input_scale") ? ", static activations" : "");
}

/// How a quantized module is stored, by its tensors' shapes; `sym` is what the config says.
std::string form_of(const ModuleTensors& tensors, const Shape& shape, const QuantizationConfig& config) {
  if (tensors.contains("lookup_table")) {
    std::int64_t bits = 0;
    while (std::int64_t{1} << bits < tensors.get("lookup_table").shape()[1]) ++bits;
    return fmt::format("codebook {} bit{}", bits, tensors.contains("rows") ? ", sparse" : "");
  }
  if (tensors.contains("weight_packed")) {
    const std::int64_t bits = tensors.get("weight_packed").shape()[1] * 32 / shape[1];
    const Shape scale = tensors.get("weight_scale").shape();
    return integer_form(bits, shape[1], scale.rank() == 2 ? scale[1] : 1, !tensors.contains("weight_zero_point"));
  }
  if (!tensors.contains("qweight")) return scaled_form(tensors, shape);
  const Shape qweight = tensors.get("qweight").shape();
  const std::int64_t bits = config.method == "awq" ? 4 : qweight[0] * 32 / shape[1];
  const Shape scale = tensors.get("scales").shape();
  if (scale.rank() != 2 || scale[0] == 0) {
    throw Error(ErrorCode::Corrupt,
                fmt::format("{}: shape {} is that of no scales", tensors.name("scales"), scale.to_string()));
  }
  return integer_form(bits, shape[1], scale[0], config.sym) + (config.desc_act ? " desc_act" : "");
}

/// Bytes of the tensors of a module; summary.tensors is sorted.
std::int64_t bytes_of_module(const ModelSummary& summary, const std::string& module) {
  const std::string prefix = module + ".";
  std::int64_t bytes = 0;
  auto tensor = std::ranges::lower_bound(summary.tensors, prefix, {}, &TensorSummary::name);
  for (; tensor != summary.tensors.end() && tensor->name.starts_with(prefix); ++tensor) bytes += tensor->size_bytes;
  return bytes;
}

TensorSummary summarize_tensor(const Checkpoint& checkpoint, const std::string& name) {
  try {
    const TensorView tensor = checkpoint.tensor(name);
    const auto sizes = tensor.shape().sizes();
    return {name,
            std::string(nibble::name(tensor.dtype())),
            {sizes.begin(), sizes.end()},
            static_cast<std::int64_t>(tensor.size_bytes())};
  } catch (const Error&) {  // a dtype or rank that nibble cannot hold: it stands in the file all the same
    return {name, "?", {}, 0};
  }
}

bool is_matrix_weight(const TensorSummary& tensor) {
  return tensor.name.ends_with(".weight") && tensor.sizes.size() == 2 && tensor.name.find("embed") == std::string::npos;
}

/// Safetensors are preferred where both lie in a folder.
std::string container_of(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") return "safetensors";
  }
  return "torch.save";
}

void summarize_folder(const Checkpoint& checkpoint, ModelSummary& summary) {
  summary.container = container_of(checkpoint.path());
  summary.method = "none";
  for (const std::string& name : checkpoint.tensor_names()) {
    summary.tensors.push_back(summarize_tensor(checkpoint, name));
  }
  std::map<std::string, Shape> quantized;
  if (checkpoint.quantization()) {
    summary.method = checkpoint.quantization()->method;
    summary.quantization = checkpoint.quantization()->raw;
    for (const QuantizedModule& module : quantized_modules(checkpoint)) {
      const std::int64_t num_weights = module.shape.num_elements();
      add_linear(summary, {form_of({checkpoint, module.name}, module.shape, *checkpoint.quantization()), 1, num_weights,
                           bytes_of_module(summary, module.name)});
      summary.num_weights += num_weights;
      quantized.emplace(module.name, module.shape);
    }
  }
  for (const TensorSummary& tensor : summary.tensors) {
    const std::string module = module_of_tensor(tensor.name);
    if (quantized.contains(module)) continue;
    summary.num_weights += product(tensor.sizes);
    if (is_matrix_weight(tensor)) add_linear(summary, {tensor.type, 1, product(tensor.sizes), tensor.size_bytes});
  }
}

void summarize_gguf(const std::filesystem::path& path, ModelSummary& summary) {
  const MappedFile mapped = MappedFile::open(path);
  const GgufFile file = GgufFile::parse(mapped.bytes());
  summary.container = "gguf";
  summary.method = "gguf";
  summary.architecture = std::string(file.string("general.architecture").value_or(""));
  for (const auto& [name, tensor] : file.tensors()) {
    const auto sizes = tensor.shape.sizes();
    summary.tensors.push_back({std::string(name),
                               std::string(layout_of(tensor.type).name),
                               {sizes.begin(), sizes.end()},
                               static_cast<std::int64_t>(tensor.bytes.size())});
    const TensorSummary& last = summary.tensors.back();
    summary.num_weights += product(last.sizes);
    const bool is_linear = last.name.ends_with(".weight") && sizes.size() == 2 && !last.name.starts_with("token_embd");
    if (is_linear) add_linear(summary, {last.type, 1, product(last.sizes), last.size_bytes});
  }
}

std::string architecture_of(const Json& config) {
  const auto names = get_optional<std::vector<std::string>>(config, "architectures");
  return names && !names->empty() ? names->front() : std::string();
}

}  // namespace

ModelSummary summarize(const std::filesystem::path& path) {
  ModelSummary summary;
  if (std::filesystem::is_directory(path)) {
    const auto checkpoint = Checkpoint::open(path);
    summary.architecture = architecture_of(checkpoint->config());
    try {
      summarize_folder(*checkpoint, summary);
    } catch (const Error& error) {
      throw error.in(path.string());
    }
  } else if (path.extension() == ".gguf") {
    try {
      summarize_gguf(path, summary);
    } catch (const Error& error) {
      throw error.in(path.string());
    }
  } else {
    Checkpoint::open(path);  // says what a model is
    summarize_gguf(path, summary);
  }
  std::ranges::sort(summary.tensors, {}, &TensorSummary::name);
  for (const TensorSummary& tensor : summary.tensors) summary.size_bytes += tensor.size_bytes;
  std::ranges::stable_sort(summary.linears, std::ranges::greater{}, &LinearSummary::num_weights);
  return summary;
}

Json to_json(const ModelSummary& summary) {
  Json linears = Json::array();
  for (const LinearSummary& linear : summary.linears) {
    linears.push_back({{"form", linear.form},
                       {"linears", linear.num_linears},
                       {"weights", linear.num_weights},
                       {"bytes", linear.size_bytes},
                       {"bits_per_weight", 8.0 * static_cast<double>(linear.size_bytes) /
                                               static_cast<double>(std::max<std::int64_t>(linear.num_weights, 1))}});
  }
  Json tensors = Json::array();
  for (const TensorSummary& tensor : summary.tensors) {
    tensors.push_back(
        {{"name", tensor.name}, {"type", tensor.type}, {"shape", tensor.sizes}, {"bytes", tensor.size_bytes}});
  }
  return {{"architecture", summary.architecture}, {"container", summary.container}, {"method", summary.method},
          {"weights", summary.num_weights},       {"bytes", summary.size_bytes},    {"linears", std::move(linears)},
          {"quantization", summary.quantization}, {"tensors", std::move(tensors)}};
}

}  // namespace nibble::formats
