#include "formats/compressed_tensors_scheme.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "core/error.h"
#include "formats/pattern.h"

namespace nibble::formats {
namespace {

constexpr std::string_view kPatternPrefix = "re:";
constexpr std::size_t kMaxPatterns = 1000;  // bounds the time that a config can take

bool is_pattern(std::string_view target) {
  return target.starts_with(kPatternPrefix);
}

bool matches(std::string_view target, std::string_view module) {
  if (!is_pattern(target)) return target == module;
  return matches_at_start(target.substr(kPatternPrefix.size()), module);
}

/// An object of `parent`; nullptr where it is absent, null or empty.
const Json* find_object(const Json& parent, const char* key) {
  const auto found = parent.find(key);
  if (found == parent.end() || found->is_null() || found->empty()) return nullptr;
  if (!found->is_object()) throw Error(ErrorCode::InvalidArgument, fmt::format("{}: expected an object", key));
  return &*found;
}

CompressedLayout layout_of(const std::string& format, bool is_float) {
  if (format == "pack-quantized") return CompressedLayout::PackQuantized;
  if (format == "int-quantized") return CompressedLayout::IntQuantized;
  if (format == "float-quantized") return CompressedLayout::FloatQuantized;
  if (format == "naive-quantized") return is_float ? CompressedLayout::FloatQuantized : CompressedLayout::IntQuantized;
  if (format == "dense") return CompressedLayout::Dense;
  throw Error(ErrorCode::Unsupported,
              fmt::format("format '{}' is not read; nibble reads pack-quantized, int-quantized, float-quantized and "
                          "naive-quantized",
                          format));
}

CompressedStrategy strategy_of(const Json& args, const std::optional<std::int64_t>& group_size) {
  const auto name = get_optional<std::string>(args, "strategy");
  if (!name) {
    if (!group_size) return CompressedStrategy::Tensor;
    return *group_size == -1 ? CompressedStrategy::Channel : CompressedStrategy::Group;
  }
  if (*name == "tensor") return CompressedStrategy::Tensor;
  if (*name == "channel") return CompressedStrategy::Channel;
  if (*name == "group") return CompressedStrategy::Group;
  if (*name == "block") return CompressedStrategy::Block;
  throw Error(ErrorCode::Unsupported, fmt::format("strategy '{}' is not read for weights", *name));
}

/// [128, 128], or "128x128" as old versions wrote it. Errors: Unsupported unless square.
std::int64_t block_size_of(const Json& args) {
  const auto found = args.find("block_structure");
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  if (found != args.end() && found->is_string()) {
    const auto text = found->get<std::string>();
    const char* end = text.data() + text.size();
    const auto first = std::from_chars(text.data(), end, rows);
    if (first.ptr != end && *first.ptr == 'x') std::from_chars(first.ptr + 1, end, cols);
  } else if (found != args.end() && found->is_array() && found->size() == 2 && (*found)[0].is_number_integer() &&
             (*found)[1].is_number_integer()) {
    rows = (*found)[0].get<std::int64_t>();
    cols = (*found)[1].get<std::int64_t>();
  }
  if (rows == 128 && cols == 128) return rows;
  throw Error(ErrorCode::Unsupported, fmt::format("block_structure {} is not read; [128, 128] is",
                                                  found == args.end() ? std::string("(absent)") : found->dump()));
}

void read_weight_args(const Json& args, CompressedScheme& scheme) {
  scheme.bits = static_cast<std::int32_t>(std::clamp<std::int64_t>(get_or<std::int64_t>(args, "num_bits", 8), 0, 64));
  scheme.symmetric = get_or(args, "symmetric", true);
  const auto group_size = get_optional<std::int64_t>(args, "group_size");
  scheme.strategy = strategy_of(args, group_size);
  if (scheme.strategy == CompressedStrategy::Group) {
    scheme.group_size = group_size.value_or(0);
    if (scheme.group_size <= 0) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("group_size {}: the strategy 'group' needs a positive one", scheme.group_size));
    }
  } else if (scheme.strategy == CompressedStrategy::Block) {
    scheme.group_size = block_size_of(args);
  }
}

void check_scheme(const CompressedScheme& scheme, bool is_float) {
  if (scheme.layout == CompressedLayout::Dense) return;
  if (is_float != (scheme.layout == CompressedLayout::FloatQuantized)) {
    throw Error(ErrorCode::Unsupported, is_float ? "float weights are read in the format float-quantized only"
                                                 : "integer weights in a float format contradict each other");
  }
  if (is_float) {
    if (scheme.bits != 8) {
      throw Error(ErrorCode::Unsupported, fmt::format("floats of {} bits are not read; 8 are", scheme.bits));
    }
    if (scheme.strategy == CompressedStrategy::Group || !scheme.symmetric) {
      throw Error(ErrorCode::Unsupported,
                  "8-bit floats with scales per group or with zero points are not read; per tensor, channel or block "
                  "are");
    }
    return;
  }
  if (scheme.bits != 2 && scheme.bits != 3 && scheme.bits != 4 && scheme.bits != 8) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("num_bits {} is not supported; integers are read with 2, 3, 4 or 8", scheme.bits));
  }
  if (scheme.strategy == CompressedStrategy::Block) {
    throw Error(ErrorCode::Unsupported, "integer weights with scales per block are not read");
  }
}

CompressedScheme parse_scheme(const std::string& name, const Json& group, const std::string& format) {
  if (!group.is_object()) {
    throw Error(ErrorCode::Unsupported, "a preset by name is not read; save the config with its groups spelt out");
  }
  CompressedScheme scheme;
  scheme.name = name;
  scheme.targets = get<std::vector<std::string>>(group, "targets");
  scheme.quantizes_activations = find_object(group, "input_activations") != nullptr;
  const Json* weights = find_object(group, "weights");
  if (weights == nullptr) {  // only activations are quantized, which the weights do not show
    scheme.layout = CompressedLayout::Dense;
    return scheme;
  }
  const auto type = get_or<std::string>(*weights, "type", "int");
  if (type != "int" && type != "float") {
    throw Error(ErrorCode::InvalidArgument, fmt::format("type '{}': expected 'int' or 'float'", type));
  }
  scheme.layout = layout_of(get_or<std::string>(group, "format", format), type == "float");
  read_weight_args(*weights, scheme);
  check_scheme(scheme, type == "float");
  return scheme;
}

/// Whatever changes weights beyond what the schemes say.
void refuse_other_transformations(const Json& raw) {
  if (const Json* sparsity = find_object(raw, "sparsity_config")) {
    const auto format = get_or<std::string>(*sparsity, "format", "dense");
    if (format != "dense") {
      throw Error(ErrorCode::Unsupported,
                  fmt::format("sparsity_config: format '{}' is not read; decompress the checkpoint first", format));
    }
  }
  if (const Json* transform = find_object(raw, "transform_config")) {
    if (find_object(*transform, "config_groups") != nullptr) {
      throw Error(ErrorCode::Unsupported,
                  "transform_config: rotations applied at run time (QuIP, SpinQuant) are not supported");
    }
  }
  const auto status = get_or<std::string>(raw, "quantization_status", "compressed");
  if (status != "compressed") {
    throw Error(ErrorCode::Unsupported,
                fmt::format("quantization_status '{}': only 'compressed' is read; save the model compressed", status));
  }
}

std::size_t count_patterns(const CompressedConfig& config) {
  std::size_t count = 0;
  for (const CompressedScheme& scheme : config.schemes)
    count += static_cast<std::size_t>(std::ranges::count_if(scheme.targets, is_pattern));
  return count + static_cast<std::size_t>(std::ranges::count_if(config.ignore, is_pattern));
}

Json weight_args(const ModuleScheme& scheme) {
  const bool is_float = scheme.kind == ModuleScheme::Kind::Float8;
  const bool is_block = is_float && scheme.group_size > 0;
  const char* strategy = is_block                ? "block"
                         : scheme.group_size > 0 ? "group"
                         : scheme.group_size < 0 ? "channel"
                                                 : "tensor";
  Json args{{"num_bits", scheme.bits}, {"type", is_float ? "float" : "int"},
            {"symmetric", scheme.sym}, {"strategy", strategy},
            {"group_size", nullptr},   {"dynamic", false}};
  if (is_block) args["block_structure"] = {scheme.group_size, scheme.group_size};
  if (!is_float && scheme.group_size > 0) args["group_size"] = scheme.group_size;
  return args;
}

/// Presets FP8, FP8_DYNAMIC and FP8_BLOCK; integer weights leave activations alone.
Json activation_args(const ModuleScheme& scheme) {
  if (scheme.kind != ModuleScheme::Kind::Float8) return nullptr;
  const bool is_block = scheme.group_size > 0;
  const char* strategy = is_block ? "group" : scheme.static_activations ? "tensor" : "token";
  Json args{{"num_bits", 8},        {"type", "float"},       {"symmetric", true},
            {"strategy", strategy}, {"group_size", nullptr}, {"dynamic", !scheme.static_activations}};
  if (is_block) args["group_size"] = scheme.group_size;
  return args;
}

const char* layout_name(const ModuleScheme& scheme) {
  return scheme.kind == ModuleScheme::Kind::Float8 ? "float-quantized" : "pack-quantized";
}

/// Modules that are stored alike, the most common kind first.
std::vector<std::vector<const ModuleScheme*>> group_alike(const std::vector<ModuleScheme>& modules) {
  std::vector<std::vector<const ModuleScheme*>> groups;
  for (const ModuleScheme& module : modules) {
    const auto alike = std::ranges::find_if(groups, [&](const auto& group) { return group.front()->is_like(module); });
    if (alike != groups.end()) {
      alike->push_back(&module);
    } else {
      groups.push_back({&module});
    }
  }
  std::ranges::stable_sort(groups, [](const auto& a, const auto& b) { return a.size() > b.size(); });
  return groups;
}

}  // namespace

const CompressedScheme* CompressedConfig::scheme_of(std::string_view module) const {
  if (std::ranges::any_of(ignore, [&](const std::string& target) { return matches(target, module); })) return nullptr;
  const auto find = [&](auto&& accepts) -> const CompressedScheme* {
    const auto found = std::ranges::find_if(
        schemes, [&](const CompressedScheme& scheme) { return std::ranges::any_of(scheme.targets, accepts); });
    return found != schemes.end() ? &*found : nullptr;
  };
  if (const auto* exact = find([&](const std::string& target) { return target == module; })) return exact;
  const auto by_pattern = [&](const std::string& target) { return is_pattern(target) && matches(target, module); };
  if (const auto* matching = find(by_pattern)) return matching;
  return find([](const std::string& target) { return target == "Linear"; });
}

Json make_compressed_config(const std::vector<ModuleScheme>& modules, std::vector<std::string> ignore) {
  Json groups = Json::object();
  std::string format;
  for (const std::vector<const ModuleScheme*>& group : group_alike(modules)) {
    Json targets = Json::array();
    if (groups.empty()) {
      targets.push_back("Linear");  // the names in the other groups come before it
    } else {
      for (const ModuleScheme* module : group) targets.push_back(module->module);
    }
    const ModuleScheme& scheme = *group.front();
    const std::string layout = layout_name(scheme);
    format = format.empty() || format == layout ? layout : "mixed-precision";
    groups[fmt::format("group_{}", groups.size())] = {{"targets", std::move(targets)},
                                                      {"weights", weight_args(scheme)},
                                                      {"input_activations", activation_args(scheme)},
                                                      {"output_activations", nullptr},
                                                      {"format", layout}};
  }
  return {{"config_groups", std::move(groups)},
          {"format", format},
          {"global_compression_ratio", nullptr},
          {"ignore", std::move(ignore)},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"},
          {"sparsity_config", Json::object()},
          {"version", "0.20.0"}};
}

CompressedConfig parse_compressed_config(const Json& raw) {
  refuse_other_transformations(raw);
  CompressedConfig config;
  const auto format = get_or<std::string>(raw, "format", "dense");
  if (const Json* groups = find_object(raw, "config_groups")) {
    for (const auto& [name, group] : groups->items()) {
      try {
        config.schemes.push_back(parse_scheme(name, group, format));
      } catch (const Error& error) {
        throw error.in(fmt::format("config_groups.{}", name));
      }
    }
  }
  config.ignore = get_or<std::vector<std::string>>(raw, "ignore", {});
  if (count_patterns(config) > kMaxPatterns) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("more than {} regular expressions in targets and ignore", kMaxPatterns));
  }
  return config;
}

}  // namespace nibble::formats
