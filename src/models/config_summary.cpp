#include "models/config_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "models/block.h"
#include "models/config.h"
#include "models/loader.h"

namespace nibble::models {
namespace {

using formats::QuantizationConfig;

/// One tensor of a linear: suffix, dtype, shape.
struct StoredTensor {
  std::string_view suffix;
  DType dtype;
  std::vector<std::int64_t> sizes;
};

struct StoredLinear {
  std::string form;
  std::vector<StoredTensor> tensors;
};

std::string group_form(std::int64_t bits, std::int64_t group_size, std::int64_t in, const char* kind) {
  return fmt::format("int{} {} {}", bits, group_size == in ? "per channel" : fmt::format("g{}", group_size), kind);
}

StoredLinear store_integers(const Shape& shape, const QuantizationConfig& config) {
  const std::int64_t out = shape[0];
  const std::int64_t in = shape[1];
  const std::int64_t group_size = config.group_size > 0 ? config.group_size : in;
  const std::int64_t groups = (in + group_size - 1) / group_size;
  if (config.method == "awq") {
    return {group_form(4, group_size, in, "asym"),
            {{"qweight", DType::I32, {in, out / 8}},
             {"qzeros", DType::I32, {groups, out / 8}},
             {"scales", DType::F16, {groups, out}}}};
  }
  return {group_form(config.bits, group_size, in, get_or(config.raw, "sym", true) ? "sym" : "asym"),
          {{"qweight", DType::I32, {in * config.bits / 32, out}},
           {"qzeros", DType::I32, {groups, out * config.bits / 32}},
           {"scales", DType::F16, {groups, out}},
           {"g_idx", DType::I32, {in}}}};
}

StoredLinear store_codebook(const Shape& shape, const QuantizationConfig& config) {
  const std::int64_t out = shape[0];
  const std::int64_t in = shape[1];
  StoredLinear stored{fmt::format("codebook {} bit", config.bits),
                      {{"qweight", DType::I32, {in * config.bits / 32, out}},
                       {"lookup_table", DType::F16, {out, std::int64_t{1} << config.bits}}}};
  const double sparsity = get_or(config.raw, "sparsity", 0.0);
  const std::int64_t nonzeros = out * static_cast<std::int64_t>(sparsity * static_cast<double>(in));
  if (nonzeros == 0) return stored;
  stored.form += ", sparse";
  stored.tensors.push_back({"rows", DType::I32, {out + 1}});
  stored.tensors.push_back({"cols", DType::I32, {nonzeros}});
  stored.tensors.push_back({"vals", DType::F32, {nonzeros}});
  return stored;
}

StoredLinear store(const Shape& shape, const std::optional<QuantizationConfig>& config) {
  if (!config) return {"F16", {{"weight", DType::F16, {shape[0], shape[1]}}}};
  if (config->method == "squeezellm") return store_codebook(shape, *config);
  if (config->method != "fp8") return store_integers(shape, *config);
  return {"fp8 per channel",
          {{"weight", DType::F8E4M3, {shape[0], shape[1]}}, {"weight_scale", DType::F32, {shape[0], 1}}}};
}

class Summary {
 public:
  explicit Summary(formats::ModelSummary& summary) : summary_(summary) {}

  void add_linear(const std::string& module, const Shape& shape, const std::optional<QuantizationConfig>& config) {
    const StoredLinear stored = store(shape, config);
    std::int64_t bytes = 0;
    for (const StoredTensor& tensor : stored.tensors) {
      bytes += add_tensor(fmt::format("{}.{}", module, tensor.suffix), tensor.dtype, tensor.sizes);
    }
    auto kind = std::ranges::find(summary_.linears, stored.form, &formats::LinearSummary::form);
    if (kind == summary_.linears.end()) kind = summary_.linears.insert(kind, {.form = stored.form});
    kind->num_linears += 1;
    kind->num_weights += shape.num_elements();
    kind->size_bytes += bytes;
    summary_.num_weights += shape.num_elements();
  }

  void add_weight(const std::string& name, const Shape& shape) {
    add_tensor(name + ".weight", DType::F16, {shape.sizes().begin(), shape.sizes().end()});
    summary_.num_weights += shape.num_elements();
  }

 private:
  std::int64_t add_tensor(std::string name, DType dtype, std::vector<std::int64_t> sizes) {
    std::int64_t bytes = static_cast<std::int64_t>(nibble::size_bytes(dtype));
    for (const std::int64_t size : sizes) bytes = checked_multiply(bytes, size);
    summary_.tensors.push_back({std::move(name), std::string(nibble::name(dtype)), std::move(sizes), bytes});
    summary_.size_bytes += bytes;
    return bytes;
  }

  formats::ModelSummary& summary_;
};

}  // namespace

formats::ModelSummary summarize_config(const std::filesystem::path& folder) {
  const auto checkpoint = make_dummy_checkpoint(folder, 0);
  const ModelConfig config = parse_model_config(checkpoint->config());
  const Architecture& architecture = find_architecture(config.architecture);
  formats::ModelSummary summary;
  summary.architecture = config.architecture;
  summary.container = "config.json alone";
  summary.method = checkpoint->quantization() ? checkpoint->quantization()->method : "none";
  if (checkpoint->quantization()) summary.quantization = checkpoint->quantization()->raw;
  Summary sum(summary);
  const Shape table{config.vocab_size, config.hidden_size};
  sum.add_weight(std::string(architecture.embedding), table);
  if (!config.tie_word_embeddings) sum.add_linear(std::string(architecture.lm_head), table, std::nullopt);
  sum.add_weight(std::string(architecture.final_norm), {config.hidden_size});
  for (std::int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    const BlockSpec block = architecture.block(config, layer_idx);
    sum.add_weight(block.module_name(block.input_norm), {config.hidden_size});
    sum.add_weight(block.module_name(block.post_attention_norm), {config.hidden_size});
    for (const Stage& stage : block.stages) {
      for (const std::string& linear : stage.linears) {
        sum.add_linear(block.module_name(linear), linear_shape(block, linear), checkpoint->quantization());
      }
    }
  }
  std::ranges::sort(summary.tensors, {}, &formats::TensorSummary::name);
  std::ranges::stable_sort(summary.linears, std::ranges::greater{}, &formats::LinearSummary::num_weights);
  return summary;
}

}  // namespace nibble::models
