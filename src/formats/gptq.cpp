#include "formats/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "core/log.h"
#include "formats/fused_names.h"
#include "formats/pattern.h"
#include "formats/transpose.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntWeights;

enum class ZeroConvention : std::uint8_t { MinusOne, Plain };  // v1, v2

/// GPTQModel's and AutoGPTQ's kernels step through both dimensions in blocks of 32.
constexpr std::int64_t kPeerMultiple = 32;

void check_bits(std::int64_t bits) {
  if (bits == 2 || bits == 3 || bits == 4 || bits == 8) return;
  throw Error(ErrorCode::Unsupported, fmt::format("bits {} is not supported; GPTQ is read with 2, 3, 4 or 8", bits));
}

void check_group_size(std::int64_t group_size) {
  if (group_size == -1 || group_size > 0) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("group_size {}: expected a positive number, or -1 for one group", group_size));
}

/// bits, group_size, sym and desc_act of `object` over those of `config`.
void override_fields(const Json& object, QuantizationConfig& config) {
  for (const char* key : {"wbits", "w_bit", "bits"}) {
    const auto bits = get_optional<std::int64_t>(object, key);
    if (!bits) continue;
    check_bits(*bits);
    config.bits = static_cast<std::int32_t>(*bits);
  }
  config.group_size = get_or<std::int64_t>(object, "group_size", config.group_size);
  check_group_size(config.group_size);
  config.sym = get_or(object, "sym", config.sym);
  config.desc_act = get_or(object, "desc_act", config.desc_act);
  if (config.group_size == -1) config.desc_act = false;  // one group: the order has no effect
}

bool rule_matches(std::string_view pattern, std::string_view module) {
  try {
    return matches_at_start(pattern, module);
  } catch (const Error& error) {
    throw error.in("dynamic");
  }
}

/// The config with GPTQModel's `dynamic` rules for this module applied: {"regex": {"bits": 8, …}}; a regex may begin
/// with "+:", one with "-:" leaves modules unquantized, which their tensors show by themselves.
QuantizationConfig config_of_module(const QuantizationConfig& config, std::string_view module) {
  QuantizationConfig effective = config;
  const auto rules = config.raw.is_object() ? config.raw.find("dynamic") : config.raw.end();
  if (!config.raw.is_object() || rules == config.raw.end() || !rules->is_object()) return effective;
  for (const auto& [key, fields] : rules->items()) {
    std::string_view pattern = key;
    if (pattern.starts_with("-:")) continue;
    if (pattern.starts_with("+:")) pattern.remove_prefix(2);
    if (!rule_matches(pattern, module)) continue;
    override_fields(fields, effective);
    break;
  }
  return effective;
}

void refuse_other_layouts(const Json& raw, std::string_view checkpoint_format) {
  if (checkpoint_format != "gptq" && checkpoint_format != "gptq_v2") {
    throw Error(
        ErrorCode::Unsupported,
        fmt::format("checkpoint_format '{}' is not read; convert the checkpoint to 'gptq' or 'gptq_v2' with the "
                    "program that wrote it",
                    checkpoint_format));
  }
  if (get_or(raw, "is_marlin_format", false)) {
    throw Error(
        ErrorCode::Unsupported,
        "is_marlin_format: weights packed for the Marlin kernel are not read; use the checkpoint in 'gptq' form");
  }
  if (const auto pack_dtype = get_or<std::string>(raw, "pack_dtype", "int32"); pack_dtype != "int32") {
    throw Error(ErrorCode::Unsupported, fmt::format("pack_dtype '{}' is not read; only int32 is", pack_dtype));
  }
}

/// True zero points, i16 [out, groups], from qzeros [groups, out*bits/32].
Tensor read_zeros(TensorView qzeros, std::int64_t out_features, std::int32_t bits, ZeroConvention convention) {
  const std::int64_t num_groups = qzeros.shape()[0];
  Tensor zeros = Tensor::empty(DType::I16, {out_features, num_groups});
  const auto target = zeros.matrix<std::int16_t>();
  std::vector<std::uint8_t> fields(static_cast<std::size_t>(out_features));
  // Not masked: v1's largest field means 2^bits, which the peers' kernels compute with as well.
  const int offset = convention == ZeroConvention::MinusOne ? 1 : 0;
  for (std::int64_t g = 0; g < num_groups; ++g) {
    const TensorView row = qzeros.rows(g, 1);
    weights::unpack_codes({static_cast<const std::uint8_t*>(row.data()), row.size_bytes()}, bits, fields);
    for (std::int64_t o = 0; o < out_features; ++o) {
      target.row(o)[g] = static_cast<std::int16_t>(fields[static_cast<std::size_t>(o)] + offset);
    }
  }
  return zeros;
}

void report_zeros(const GroupedIntWeights& w, const QuantizationConfig& config, ZeroConvention convention,
                  const std::string& module) {
  const auto zeros = w.zeros.span<std::int16_t>();
  const auto middle = static_cast<std::int16_t>(1 << (w.bits - 1));
  if (config.sym && !std::all_of(zeros.begin(), zeros.end(), [&](std::int16_t zero) { return zero == middle; })) {
    log::warning("{}: the config says sym, but zero points differ from {}; the stored ones are used", module, middle);
  }
  const auto overflow = static_cast<std::int16_t>(1 << w.bits);
  if (!config.sym && convention == ZeroConvention::MinusOne &&
      std::find(zeros.begin(), zeros.end(), overflow) != zeros.end()) {
    log::warning(
        "{}: a zero point reads {}; some writers of asymmetric 'gptq' files damage zeros this way ('gptq_v2' is safe)",
        module, overflow);
  }
}

/// The stored g_idx with negative entries counted from the end; empty where it is missing or trivial.
Tensor read_g_idx(const ModuleTensors& tensors, const QuantizationConfig& config, const GroupedIntWeights& w) {
  if (!tensors.contains("g_idx")) {
    if (!config.desc_act) return {};
    throw Error(ErrorCode::Corrupt, fmt::format("{} is missing, but the config says desc_act: without it the order of "
                                                "the groups is lost",
                                                tensors.name("g_idx")));
  }
  const TensorView stored = tensors.get("g_idx", DType::I32, {w.in_features});
  Tensor g_idx = Tensor::copy_of(stored);
  const auto num_groups = static_cast<std::int32_t>(w.num_groups());
  bool trivial = true;
  std::int64_t i = 0;
  for (std::int32_t& group : g_idx.span<std::int32_t>()) {
    if (group < 0) group += num_groups;
    if (group < 0 || group >= num_groups) {
      throw Error(ErrorCode::Corrupt,
                  fmt::format("{}: entry {} is outside the {} groups", tensors.name("g_idx"),
                              stored.span<std::int32_t>()[static_cast<std::size_t>(i)], num_groups));
    }
    trivial = trivial && group == i / w.group_size;
    ++i;
  }
  return trivial ? Tensor{} : std::move(g_idx);
}

void check_packable(const ModuleTensors& tensors, const Shape& shape, std::int32_t bits) {
  if (shape[0] * bits % 32 != 0 || shape[1] * bits % 32 != 0) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: {} bits of shape {} do not fill whole 32-bit words",
                                                tensors.name("qweight"), bits, shape.to_string()));
  }
  const Shape found = tensors.get("qweight").shape();
  if (shape[0] % 8 == 0 && found == Shape{shape[1], shape[0] / 8}) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: shape {} is AWQ's layout, but the config says gptq",
                                                tensors.name("qweight"), found.to_string()));
  }
}

/// One bit stream a group along the outputs: i32 [groups, out*bits/32].
Tensor pack_zeros(const GroupedIntWeights& w, ZeroConvention convention) {
  const std::int64_t num_groups = w.num_groups();
  const int offset = convention == ZeroConvention::MinusOne ? 1 : 0;
  Tensor qzeros = Tensor::empty(DType::I32, {num_groups, w.out_features * w.bits / 32});
  const auto zeros = w.zeros.matrix<std::int16_t>();
  std::vector<std::uint8_t> fields(static_cast<std::size_t>(w.out_features));
  for (std::int64_t g = 0; g < num_groups; ++g) {
    for (std::int64_t o = 0; o < w.out_features; ++o) {
      fields[static_cast<std::size_t>(o)] = static_cast<std::uint8_t>(zeros.row(o)[g] - offset);
    }
    const MutableTensorView row = qzeros.mutable_view().rows(g, 1);
    weights::pack_codes(fields, w.bits, {static_cast<std::uint8_t*>(row.data()), row.size_bytes()});
  }
  return qzeros;
}

/// v1 could hold 2^bits as well, but GPTQModel adds the one to whole words, where it carries into the neighbour.
void check_zero_range(const GroupedIntWeights& w, ZeroConvention convention) {
  const int smallest = convention == ZeroConvention::MinusOne ? 1 : 0;
  const int largest = (1 << w.bits) - 1;
  for (const std::int16_t zero : w.zeros.span<std::int16_t>()) {
    if (zero >= smallest && zero <= largest) continue;
    throw Error(
        ErrorCode::Unsupported,
        fmt::format("zero point {} is outside {}…{}, all that {}", zero, smallest, largest,
                    convention == ZeroConvention::MinusOne ? "checkpoint_format 'gptq' holds safely; write 'gptq_v2'"
                                                           : "the format holds"));
  }
}

Tensor make_trivial_g_idx(const GroupedIntWeights& w) {
  Tensor g_idx = Tensor::empty(DType::I32, {w.in_features});
  std::int64_t i = 0;
  for (std::int32_t& group : g_idx.span<std::int32_t>()) group = static_cast<std::int32_t>(i++ / w.group_size);
  return g_idx;
}

std::vector<NamedTensor> write_gptq(const GroupedIntWeights& w, ZeroConvention convention) {
  if (w.in_features % kPeerMultiple != 0 || w.out_features % kPeerMultiple != 0) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("GPTQ needs input and output sizes that are multiples of {}, this layer is {} by {}; leave "
                            "it in f16",
                            kPeerMultiple, w.out_features, w.in_features));
  }
  if (w.first_group_offset != 0) throw Error(ErrorCode::Unsupported, "a slice that begins inside a group");
  check_zero_range(w, convention);
  // The canonical rows are the same bit stream, so a row of codes is a column of qweight's words.
  const TensorView words(w.codes.view().data(), DType::I32, {w.out_features, w.in_features * w.bits / 32});
  std::vector<NamedTensor> tensors;
  tensors.push_back({"qweight", transpose(words)});
  tensors.push_back({"qzeros", pack_zeros(w, convention)});
  tensors.push_back({"scales", scales_to_write(w)});
  // Always stored: AutoGPTQ registers g_idx as a buffer and loads strictly.
  tensors.push_back({"g_idx", w.has_g_idx() ? Tensor::copy_of(w.g_idx) : make_trivial_g_idx(w)});
  return tensors;
}

std::string escape_regex(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view(".^$*+?()[]{}|\\").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

/// GPTQModel's rules for modules that stay float, and for those that differ from the rest.
Json make_dynamic_rules(const QuantizationConfig& config) {
  Json rules = Json::object();
  for (const std::string& module : with_fused_names(config.modules_to_not_convert)) {
    rules["-:^" + escape_regex(module) + "$"] = Json::object();
  }
  for (const ModuleScheme& module : config.modules) {
    // A single module may be symmetric by chance, or have its columns in order: its tensors say so. But readers that
    // trust `sym` do not look at zero points.
    const bool needs_zeros = config.sym && !module.sym;
    if (module.bits == config.bits && module.group_size == config.group_size && !needs_zeros) continue;
    Json rule{{"bits", module.bits}, {"group_size", module.group_size}};
    if (needs_zeros) rule["sym"] = false;
    for (const std::string& name : with_fused_names(std::span(&module.module, 1))) {
      rules["+:^" + escape_regex(name) + "$"] = rule;
    }
  }
  return rules;
}

}  // namespace

QuantizationConfig parse_gptq_config(const Json& raw) {
  QuantizationConfig config;
  config.group_size = -1;  // AutoGPTQ's default
  override_fields(raw, config);
  const auto format = get_optional<std::string>(raw, "checkpoint_format");
  config.checkpoint_format = format ? *format : get_or<std::string>(raw, "format", "gptq");
  refuse_other_layouts(raw, config.checkpoint_format);
  return config;
}

Json make_gptq_config(const QuantizationConfig& config) {
  Json json{{"bits", config.bits},     {"group_size", config.group_size},
            {"damp_percent", 0.01},    {"desc_act", config.desc_act},
            {"static_groups", false},  {"sym", config.sym},
            {"true_sequential", true}, {"lm_head", false},
            {"quant_method", "gptq"},  {"checkpoint_format", config.checkpoint_format}};
  if (Json rules = make_dynamic_rules(config); !rules.empty()) json["dynamic"] = std::move(rules);
  if (!config.raw.is_object()) return json;
  for (const char* key : {"damp_percent", "static_groups", "true_sequential", "lm_head", "meta", "dynamic"}) {
    if (config.raw.contains(key)) json[key] = config.raw[key];
  }
  return json;
}

weights::LinearWeights read_gptq(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape) {
  const QuantizationConfig effective = config_of_module(config, tensors.module());
  const ZeroConvention convention =
      effective.checkpoint_format == "gptq_v2" ? ZeroConvention::Plain : ZeroConvention::MinusOne;
  GroupedIntWeights w;
  w.out_features = shape[0];
  w.in_features = shape[1];
  w.bits = effective.bits;
  w.group_size = effective.group_size == -1 ? w.in_features : std::min(effective.group_size, w.in_features);
  check_packable(tensors, shape, w.bits);

  const std::int64_t num_groups = (w.in_features + w.group_size - 1) / w.group_size;
  const std::int64_t words = w.in_features * w.bits / 32;
  w.codes = Tensor::empty(DType::U8, {w.out_features, words * 4});
  transpose(tensors.get("qweight", DType::I32, {words, w.out_features}), w.codes.mutable_view());
  w.scales = transpose(tensors.get_float("scales", {num_groups, w.out_features}));
  const TensorView qzeros = tensors.get("qzeros", DType::I32, {num_groups, w.out_features * w.bits / 32});
  w.zeros = read_zeros(qzeros, w.out_features, w.bits, convention);
  w.g_idx = read_g_idx(tensors, effective, w);
  report_zeros(w, effective, convention, tensors.module());
  return w;
}

std::vector<NamedTensor> write_gptq_v1(const GroupedIntWeights& weights) {
  return write_gptq(weights, ZeroConvention::MinusOne);
}

std::vector<NamedTensor> write_gptq_v2(const GroupedIntWeights& weights) {
  return write_gptq(weights, ZeroConvention::Plain);
}

}  // namespace nibble::formats
