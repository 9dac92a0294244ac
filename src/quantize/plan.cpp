#include "quantize/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "formats/linear_format.h"

namespace nibble::quantize {
namespace {

struct LayerShape {
  std::string name;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
};

/// "a, b and 58 more"
std::string list_names(const std::vector<LayerShape>& layers) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(layers.size(), 3); ++i)
    text += (i > 0 ? ", " : "") + layers[i].name;
  return layers.size() > 3 ? text + fmt::format(" and {} more", layers.size() - 3) : text;
}

/// Sizes that people use and that divide every layer.
std::string fitting_group_sizes(const std::vector<LayerShape>& layers) {
  std::vector<std::string> sizes;
  for (const std::int64_t size : {256, 128, 64, 32, 16}) {
    if (std::ranges::all_of(layers, [&](const LayerShape& layer) { return layer.in_features % size == 0; })) {
      sizes.push_back(std::to_string(size));
    }
  }
  sizes.emplace_back("-1 (one group a row)");
  return fmt::format("{}", fmt::join(sizes, ", "));
}

void check_group_size(const std::vector<LayerShape>& layers, std::int64_t group_size) {
  if (group_size == -1) return;
  if (group_size <= 0) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("group size {} is not one; choose --group-size {}", group_size,
                                                        fitting_group_sizes(layers)));
  }
  std::vector<LayerShape> misfits;
  for (const LayerShape& layer : layers) {
    if (layer.in_features % group_size != 0) misfits.push_back(layer);
  }
  if (misfits.empty()) return;
  throw Error(ErrorCode::Unsupported,
              fmt::format("group size {} does not divide in_features {} of {}; choose --group-size {}", group_size,
                          misfits.front().in_features, list_names(misfits), fitting_group_sizes(layers)));
}

/// Multiples that a disk format packs by.
struct Packing {
  std::string_view name;
  std::int64_t out_multiple;
  std::int64_t in_multiple;
  std::string_view advice;
};

Packing packing_of(const MethodOptions& options, std::string_view format) {
  if (format == "awq") return {"AWQ", 8, 1, "no other method can write this model either"};
  if (format == "squeezellm") {
    return {"SqueezeLLM", 1, options.grid.bits == 3 ? 32 : 8, "no other method can write this model either"};
  }
  if (format == "compressed-tensors") return {"compressed-tensors", 1, 1, ""};  // its streams may end inside a word
  return {"GPTQ", 32, 32, "try --method awq"};
}

/// So that no file is begun which cannot be finished.
void check_shapes(const std::vector<LayerShape>& layers, const Packing& packing) {
  std::vector<LayerShape> misfits;
  for (const LayerShape& layer : layers) {
    if (layer.out_features % packing.out_multiple != 0 || layer.in_features % packing.in_multiple != 0) {
      misfits.push_back(layer);
    }
  }
  if (misfits.empty()) return;
  throw Error(ErrorCode::Unsupported,
              fmt::format("{} packs {} outputs and {} inputs together, which [{}, {}] of {} does not fill; {}",
                          packing.name, packing.out_multiple, packing.in_multiple, misfits.front().out_features,
                          misfits.front().in_features, list_names(misfits), packing.advice));
}

/// Formats that hold what a method makes.
std::vector<std::string_view> formats_of(Makes makes) {
  switch (makes) {
    case Makes::GroupedInt: return {"gptq", "gptq_v2", "awq", "compressed-tensors"};
    case Makes::Fp8: return {"fp8", "compressed-tensors"};
    case Makes::Codebook: return {"squeezellm"};
  }
  return {};
}

/// Options that the grid may have and a format not.
void check_format_holds(std::string_view format, const MethodOptions& options) {
  const bool is_asymmetric = options.grid.symmetry == Symmetry::Asymmetric;
  if (format == "gptq" && is_asymmetric) {
    throw Error(
        ErrorCode::InvalidArgument,
        "--format gptq cannot hold a zero point of 0, which asymmetric grids may have; choose gptq_v2 or --sym");
  }
  if (format == "awq" && options.grid.bits != 4) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--format autoawq holds 4 bits only, not {}; choose --bits 4 or --format gptq_v2",
                            options.grid.bits));
  }
  if (options.group_index == GroupIndex::DescAct && (format == "awq" || format == "compressed-tensors")) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--format {} has no place for the g_idx of --desc-act; choose gptq", format));
  }
}

/// The format that was asked for, or the method's own. Errors: InvalidArgument naming those that go with the method.
std::string choose_format(const Method& method, const PipelineOptions& options) {
  if (options.format.empty()) return std::string(method.checkpoint_format(options.method_options));
  const std::string_view format = formats::find_linear_format(options.format).name;
  const std::vector<std::string_view> holding = formats_of(method.makes);
  if (std::ranges::find(holding, format) == holding.end()) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--format {} cannot hold what {} makes; choose {}",
                                                        options.format, method.name, fmt::join(holding, ", ")));
  }
  if (method.makes == Makes::GroupedInt) check_format_holds(format, options.method_options);
  return std::string(format);
}

/// What the format and the method can hold of single layers' own schemes.
void check_overrides(const Plan& plan, const PipelineOptions& options) {
  for (const LayerOverride& override : options.layer_overrides) {
    if (plan.method->makes != Makes::GroupedInt) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--layer '{}': {} has one scheme for all layers; only rtn, gptq "
                              "and awq take others",
                              override.pattern, plan.method->name));
    }
    if (plan.format == "awq" &&
        override.group_size.value_or(options.method_options.group_size) != options.method_options.group_size) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--layer '{}': AWQ files have one group size for all layers; choose --format gptq_v2",
                              override.pattern));
    }
    if (plan.format == "awq" &&
        override.symmetry.value_or(options.method_options.grid.symmetry) != options.method_options.grid.symmetry) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--layer '{}': AWQ files have zero points for all layers or for none; choose --format "
                              "gptq_v2",
                              override.pattern));
    }
  }
}

/// The layers that share a scheme, for each of them; skipped ones are left out.
std::vector<std::pair<MethodOptions, std::vector<LayerShape>>> layers_by_choice(const Plan& plan) {
  std::vector<std::pair<MethodOptions, std::vector<LayerShape>>> groups;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    for (std::size_t s = 0; s < plan.stages[b].size(); ++s) {
      const StageChoice& choice = plan.stages[b][s];
      if (choice.is_skipped) continue;
      auto group = std::ranges::find_if(groups, [&](const auto& other) {
        return other.first.grid.bits == choice.options.grid.bits &&
               other.first.group_size == choice.options.group_size &&
               other.first.grid.symmetry == choice.options.grid.symmetry;
      });
      if (group == groups.end()) group = groups.insert(groups.end(), {choice.options, {}});
      for (const std::string& relative : plan.blocks[b].stages[s].linears) {
        const Shape shape = models::linear_shape(plan.blocks[b], relative);
        group->second.push_back({plan.blocks[b].module_name(relative), shape[0], shape[1]});
      }
    }
  }
  return groups;
}

/// Errors: as make_plan.
void check_layers(const Plan& plan, const MethodOptions& options, const std::vector<LayerShape>& layers) {
  plan.method->check_options(options);
  if (plan.method->makes == Makes::GroupedInt) {
    check_format_holds(plan.format, options);
    check_group_size(layers, options.group_size);
  }
  if (plan.method->makes != Makes::Fp8) check_shapes(layers, packing_of(options, plan.format));
}

void check_is_float(const formats::Checkpoint& checkpoint) {
  const auto& quantization = checkpoint.quantization();
  // Q8_0 and the like are read as what they dequantize to.
  if (!quantization || quantization->method == "gguf") return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("{}: is quantized already ({}, {} bits); quantize the float model it was made from",
                          checkpoint.path().string(), quantization->method, quantization->bits));
}

void check_grid(const MethodOptions& options) {
  const std::int32_t bits = options.grid.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--bits {}: choose 2, 3, 4 or 8", bits));
  }
  const double damp = options.damp_percent;
  if (!(damp >= 0 && damp <= 1)) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--damp-percent {}: choose 0 … 1, as in 0.01", damp));
  }
}

void check_calibration(const PipelineOptions& options) {
  if (options.max_memory < 0) throw Error(ErrorCode::InvalidArgument, "--max-memory must be positive, as in 24GB");
  const std::vector<std::string>& sources = options.calibration.sources;
  if (sources.size() > 1 && std::ranges::find(sources, "self") != sources.end()) {
    throw Error(ErrorCode::InvalidArgument, "--calibration self does not go together with files");
  }
  if (options.calibration.num_samples <= 0) throw Error(ErrorCode::InvalidArgument, "--samples must be positive");
  if (options.calibration.seq_len <= 1) throw Error(ErrorCode::InvalidArgument, "--seq-len must be at least 2");
  // More than any corpus in use holds, and few enough that no estimate in bytes overflows.
  constexpr std::int64_t kMaxTokens = 100'000'000'000;
  if (options.calibration.num_samples > kMaxTokens / options.calibration.seq_len) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--samples {} of --seq-len {} tokens are too many: choose at most {} in all",
                            options.calibration.num_samples, options.calibration.seq_len, kMaxTokens));
  }
}

void check_seq_len(const models::ModelConfig& config, const PipelineOptions& options) {
  if (options.calibration.seq_len <= config.max_position_embeddings) return;
  throw Error(ErrorCode::InvalidArgument, fmt::format("--seq-len {} is more than the model's context of {}",
                                                      options.calibration.seq_len, config.max_position_embeddings));
}

/// What a run of our own has left is the journal's matter.
void check_output(const std::filesystem::path& output) {
  if (!std::filesystem::exists(output) ||
      (std::filesystem::is_directory(output) && (std::filesystem::is_empty(output) || Journal::is_in(output)))) {
    return;
  }
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("{}: exists already; choose another --output or remove it", output.string()));
}

}  // namespace

Plan make_plan(const formats::Checkpoint& checkpoint, const PipelineOptions& options) {
  Plan plan;
  plan.method = &find_method(options.method);
  if (plan.method->makes == Makes::GroupedInt) check_grid(options.method_options);
  check_calibration(options);
  plan.method->check_options(options.method_options);
  plan.format = choose_format(*plan.method, options);
  check_output(options.output);
  check_is_float(checkpoint);
  plan.config = models::parse_model_config(checkpoint.config());
  plan.architecture = &models::find_architecture(plan.config.architecture);
  for (std::int64_t i = 0; i < plan.config.num_hidden_layers; ++i) {
    plan.blocks.push_back(plan.architecture->block(plan.config, i));
  }
  plan.stages = choose_stages(plan.blocks, options.method_options, options.skip_layers, options.layer_overrides);
  check_overrides(plan, options);
  for (const auto& [method_options, layers] : layers_by_choice(plan)) {
    try {
      check_layers(plan, method_options, layers);
    } catch (const Error& error) {
      if (options.layer_overrides.empty()) throw;
      throw error.in(list_names(layers));
    }
  }
  if (plan.method->calibration(options.method_options) != Calibration::None) check_seq_len(plan.config, options);
  return plan;
}

}  // namespace nibble::quantize
