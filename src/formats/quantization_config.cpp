#include "formats/quantization_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "core/file.h"
#include "core/log.h"
#include "formats/linear_format.h"

namespace nibble::formats {
namespace {

/// Names of one method in the order of vLLM's families.
std::string normalised_method(std::string method) {
  for (char& c : method) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (method == "gptq_marlin" || method == "auto_gptq" || method == "auto-gptq") return "gptq";
  if (method == "awq_marlin") return "awq";
  if (method == "fbgemm_fp8") return "fp8";
  return method;
}

/// Side files of old checkpoints do not name their method; their keys do.
std::string method_of(const Json& object) {
  if (auto method = get_optional<std::string>(object, "quant_method")) return normalised_method(*method);
  if (object.contains("w_bit") || object.contains("q_group_size") || object.contains("zero_point")) return "awq";
  if (object.contains("bits") || object.contains("desc_act")) return "gptq";
  if (object.contains("wbits")) return "squeezellm";
  throw Error(ErrorCode::Unsupported,
              "cannot tell the quantization method: no quant_method, and no keys of AWQ or GPTQ");
}

std::optional<QuantizationConfig> parse_side_file(const std::filesystem::path& folder) {
  constexpr std::array<const char*, 2> kNames{"quantize_config.json", "quant_config.json"};
  for (const char* name : kNames) {
    const std::filesystem::path path = folder / name;
    if (!std::filesystem::exists(path)) continue;
    const Json object = read_json_file(path);
    try {
      return parse_quantization_config(object);
    } catch (const Error& error) {
      throw error.in(path.string());
    }
  }
  return std::nullopt;
}

void warn_about_contradiction(const QuantizationConfig& main, const std::filesystem::path& folder) {
  std::optional<QuantizationConfig> side;
  try {
    side = parse_side_file(folder);
  } catch (const Error& error) {
    log::warning("{}; config.json's quantization_config is used", error.what());
    return;
  }
  if (!side) return;
  if (side->method == main.method && side->bits == main.bits && side->group_size == main.group_size &&
      side->sym == main.sym && side->desc_act == main.desc_act) {
    return;
  }
  log::warning(
      "{}: its quantization side file says {} {} bits, group size {}, sym {}, desc_act {}; config.json says {} {} "
      "bits, group size {}, sym {}, desc_act {}, and wins",
      folder.string(), side->method, side->bits, side->group_size, side->sym, side->desc_act, main.method, main.bits,
      main.group_size, main.sym, main.desc_act);
}

bool all_zeros_are(const weights::GroupedIntWeights& w, std::int16_t zero) {
  return std::ranges::all_of(w.zeros.span<std::int16_t>(), [&](std::int16_t found) { return found == zero; });
}

ModuleScheme scheme_of(const weights::GroupedIntWeights& w, std::int64_t group_size) {
  ModuleScheme scheme;
  scheme.bits = w.bits;
  scheme.group_size = w.num_groups() == 1 && w.group_size != group_size ? -1 : w.group_size;
  scheme.sym = all_zeros_are(w, static_cast<std::int16_t>(1 << (w.bits - 1)));
  scheme.desc_act = w.has_g_idx();
  return scheme;
}

ModuleScheme scheme_of(const weights::Fp8Weights& w, std::int64_t) {
  ModuleScheme scheme{.module = {}, .kind = ModuleScheme::Kind::Float8, .bits = 8};
  scheme.group_size = w.block_size > 0 ? w.block_size : w.scale.num_elements() == 1 ? 0 : -1;
  scheme.static_activations = w.input_scale > 0;
  return scheme;
}

ModuleScheme scheme_of(const weights::CodebookWeights& w, std::int64_t) {
  return {.module = {}, .kind = ModuleScheme::Kind::Codebook, .bits = w.bits};
}

ModuleScheme scheme_of(const weights::DenseWeights&, std::int64_t) {
  throw Error(ErrorCode::Unsupported, "dense weights have no quantization scheme");
}

}  // namespace

QuantizationConfig parse_quantization_config(const Json& object) {
  if (!object.is_object()) throw Error(ErrorCode::InvalidArgument, "expected an object");
  const std::string method = method_of(object);
  const LinearFormat* format = find_linear_format_of_method(method);
  if (format == nullptr) {
    std::string known;
    for (const LinearFormat& row : linear_formats()) {
      if (known.find(row.method) == std::string::npos)
        known += fmt::format("{}{}", known.empty() ? "" : ", ", row.method);
    }
    throw Error(
        ErrorCode::Unsupported,
        fmt::format("quant_method '{}' is not read; nibble reads {} and unquantized checkpoints", method, known));
  }
  QuantizationConfig config = format->parse_config(object);
  config.method = method;
  config.raw = object;
  return config;
}

ModuleScheme scheme_of(std::string module, const weights::LinearWeights& weights, std::int64_t group_size) {
  ModuleScheme scheme = std::visit([&](const auto& w) { return scheme_of(w, group_size); }, weights);
  scheme.module = std::move(module);
  return scheme;
}

std::optional<QuantizationConfig> find_quantization_config(const Json& config, const std::filesystem::path& folder) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) continue;
    try {
      QuantizationConfig parsed = parse_quantization_config(*found);
      warn_about_contradiction(parsed, folder);
      return parsed;
    } catch (const Error& error) {
      throw error.in(key).in((folder / "config.json").string());
    }
  }
  return parse_side_file(folder);
}

Json make_quantization_config(std::string_view format, const QuantizationConfig& config) {
  const LinearFormat& row = find_linear_format(format);
  QuantizationConfig written = config;
  written.method = row.method;
  if (row.method == "gptq") written.checkpoint_format = row.name;
  return row.make_config(written);
}

std::vector<std::pair<std::string, std::string>> make_quantization_side_files(std::string_view format,
                                                                              const QuantizationConfig& config) {
  const LinearFormat& row = find_linear_format(format);
  if (row.make_side_files == nullptr) return {};
  return row.make_side_files(config);
}

}  // namespace nibble::formats
