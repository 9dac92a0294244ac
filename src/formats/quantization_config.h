#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

/// How the checkpoint in `folder` is quantized: config.json's `quantization_config`, else quantize_config.json
/// (AutoGPTQ) or quant_config.json (AutoAWQ, llm-awq); config.json wins over a side file that says otherwise, with a
/// warning (formats.md §0.2). Nothing where there is no evidence.
/// Errors: Unsupported for a method or variant that nibble does not read; InvalidArgument for wrong types.
std::optional<QuantizationConfig> find_quantization_config(const Json& config, const std::filesystem::path& folder);

/// One `quantization_config` object, by its quant_method, or by its keys where it is an old side file.
/// Errors: as find_quantization_config.
QuantizationConfig parse_quantization_config(const Json& object);

/// How a module with these weights is stored by a format that takes them; `group_size` is the one that was asked for,
/// so that a layer of a single group counts as grouped where others are.
ModuleScheme scheme_of(std::string module, const weights::LinearWeights& weights, std::int64_t group_size);

/// The `quantization_config` object to write into config.json for linears written as `format` ("gptq", "gptq_v2",
/// "awq", "compressed-tensors"): the keys that the peers read. bits, group_size, sym, desc_act and
/// modules_to_not_convert come from `config`, what single modules have of their own from `config.modules`; keys of
/// `config.raw` override defaults that are provenance only, such as damp_percent or static_groups.
Json make_quantization_config(std::string_view format, const QuantizationConfig& config);

/// Name and text of the files that readers of `format` look for beside config.json, mostly none.
std::vector<std::pair<std::string, std::string>> make_quantization_side_files(std::string_view format,
                                                                              const QuantizationConfig& config);

}  // namespace nibble::formats
