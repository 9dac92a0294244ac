#include "formats/fp8.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "weights/fp8.h"

namespace nibble::formats {
namespace {

using weights::Fp8Weights;

/// Side of a block, or 0 where the config names none.
std::int64_t block_size_of(const Json& raw) {
  const auto found = raw.find("weight_block_size");
  if (found == raw.end() || found->is_null()) return 0;
  if (!found->is_array() || found->size() != 2 || !(*found)[0].is_number_integer() || (*found)[0] != (*found)[1] ||
      (*found)[0].get<std::int64_t>() <= 0) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("weight_block_size {} is not read; square blocks such as [128, 128] are", found->dump()));
  }
  return (*found)[0].get<std::int64_t>();
}

bool is_static(const QuantizationConfig& config) {
  return config.raw.is_object() && get_or<std::string>(config.raw, "activation_scheme", "dynamic") == "static";
}

void expect_one_of(const Json& raw, const char* key, const char* value, const char* instead) {
  const auto found = get_optional<std::string>(raw, key);
  if (!found || *found == value) return;
  throw Error(ErrorCode::Unsupported, fmt::format("{} '{}' is not read; {}", key, *found, instead));
}

std::int64_t num_blocks(std::int64_t size, std::int64_t block_size) {
  return (size + block_size - 1) / block_size;
}

[[noreturn]] void refuse_scale_shape(const std::string& name, const Shape& found, const Shape& shape,
                                     std::int64_t block_size) {
  std::string blocks;
  if (block_size > 0) {
    blocks = fmt::format(" or, for blocks of {}, [{}, {}]", block_size, num_blocks(shape[0], block_size),
                         num_blocks(shape[1], block_size));
  }
  throw Error(ErrorCode::Corrupt,
              fmt::format("{}: expected one value, [{}, 1]{}, found {}", name, shape[0], blocks, found.to_string()));
}

/// f32 in the shape that Fp8Weights wants; sets block_size for the block form.
Tensor read_scale(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape,
                  std::int64_t& block_size) {
  const std::string suffix = tensors.contains("weight_scale_inv") ? "weight_scale_inv" : "weight_scale";
  const Shape found = tensors.get(suffix).shape();
  const Tensor values = to_dtype(tensors.get_float(suffix, found), DType::F32);
  const auto as = [&](const Shape& wanted) { return Tensor::copy_of({values.view().data(), DType::F32, wanted}); };
  std::int64_t configured = config.raw.is_object() ? block_size_of(config.raw) : 0;
  if (configured == 0 && suffix == "weight_scale_inv") configured = weights::kFp8BlockSize;
  if (configured > 0) {
    const Shape blocks{num_blocks(shape[0], configured), num_blocks(shape[1], configured)};
    if (found == blocks) {
      block_size = configured;
      return as(blocks);
    }
  }
  if (found.num_elements() == 1) return as({1});
  if (found == Shape{shape[0]} || found == Shape{shape[0], 1}) return as({shape[0]});
  refuse_scale_shape(tensors.name(suffix), found, shape, configured);
}

float read_input_scale(const ModuleTensors& tensors) {
  const TensorView found = tensors.get("input_scale");
  if (found.num_elements() != 1) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: expected one value, found shape {}", tensors.name("input_scale"),
                                                found.shape().to_string()));
  }
  const float scale = to_dtype(tensors.get_float("input_scale", found.shape()), DType::F32).span<float>()[0];
  if (std::isfinite(scale) && scale > 0) return scale;
  throw Error(ErrorCode::Corrupt, fmt::format("{}: found {}; a scale is a positive number, so the checkpoint is broken",
                                              tensors.name("input_scale"), scale));
}

Tensor reshaped(const Tensor& tensor, const Shape& shape) {
  return Tensor::copy_of({tensor.view().data(), tensor.dtype(), shape});
}

/// What `raw` says; where it says nothing, what the written modules show.
Json fp8_keys(const QuantizationConfig& config) {
  Json keys = config.raw.is_object() ? config.raw : Json::object();
  for (const ModuleScheme& module : config.modules) {
    const char* scheme = module.static_activations ? "static" : "dynamic";
    if (!keys.contains("activation_scheme")) keys["activation_scheme"] = scheme;
    if (module.group_size > 0 && !keys.contains("weight_block_size")) {
      keys["weight_block_size"] = {module.group_size, module.group_size};
    }
    if (keys["activation_scheme"] == scheme) continue;
    throw Error(ErrorCode::Unsupported, fmt::format("{}: its activation scale is {}, that of other modules is not, and "
                                                    "quant_method fp8 has one scheme for all",
                                                    module.module, scheme));
  }
  return keys;
}

}  // namespace

QuantizationConfig parse_fp8_config(const Json& raw) {
  QuantizationConfig config;
  config.bits = 8;
  config.group_size = -1;
  config.checkpoint_format = "fp8";
  expect_one_of(raw, "fmt", "e4m3", "only e4m3 (E4M3FN) is");
  expect_one_of(raw, "scale_fmt", "float", "scales are read as floats");
  const auto scheme = get_or<std::string>(raw, "activation_scheme", "dynamic");
  if (scheme != "dynamic" && scheme != "static") {
    throw Error(ErrorCode::Unsupported,
                fmt::format("activation_scheme '{}' is not read; dynamic and static are", scheme));
  }
  if (block_size_of(raw) > 0 && scheme == "static") {
    throw Error(ErrorCode::Unsupported, "weight_block_size goes with activation_scheme dynamic only");
  }
  for (const char* key : {"ignored_layers", "modules_to_not_convert"}) {
    const auto found = raw.find(key);
    if (found == raw.end() || found->is_null()) continue;
    for (auto& name : get<std::vector<std::string>>(raw, key)) config.modules_to_not_convert.push_back(std::move(name));
  }
  return config;
}

Json make_fp8_config(const QuantizationConfig& config) {
  const Json raw = fp8_keys(config);
  const std::vector<std::string> kept = modules_kept_float(config);
  Json json{{"quant_method", "fp8"},
            {"activation_scheme", get_or<std::string>(raw, "activation_scheme", "dynamic")},
            {"fmt", "e4m3"},
            // vLLM reads the first name, transformers the second.
            {"ignored_layers", kept},
            {"modules_to_not_convert", kept}};
  for (const char* key : {"weight_block_size", "kv_cache_scheme"}) {
    if (raw.contains(key)) json[key] = raw[key];
  }
  return json;
}

weights::LinearWeights read_fp8(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape) {
  Fp8Weights w;
  w.weight = Tensor::borrow(tensors.get("weight", DType::F8E4M3, shape));
  w.scale = read_scale(tensors, config, shape, w.block_size);
  if (is_static(config)) w.input_scale = read_input_scale(tensors);
  return w;
}

std::vector<NamedTensor> write_fp8(const weights::LinearWeights& weights) {
  const auto& w = expect_kind<Fp8Weights>(weights, "fp8");
  if (w.block_size > 0 && w.input_scale > 0) {
    throw Error(ErrorCode::Unsupported, "static activation scales do not go with scales per block");
  }
  std::vector<NamedTensor> tensors;
  tensors.push_back({"weight", Tensor::borrow(w.weight)});
  if (w.block_size > 0) {
    tensors.push_back({"weight_scale_inv", Tensor::borrow(w.scale)});
  } else {
    const std::int64_t count = w.scale.num_elements();
    tensors.push_back({"weight_scale", reshaped(w.scale, count == 1 ? Shape{1} : Shape{count, 1})});
  }
  if (w.input_scale > 0) tensors.push_back({"input_scale", Tensor::copy_of({&w.input_scale, DType::F32, {1}})});
  return tensors;
}

}  // namespace nibble::formats
