#include "formats/compressed_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/log.h"
#include "formats/compressed_tensors_scheme.h"
#include "formats/transpose.h"

namespace nibble::formats {
namespace {

using weights::Fp8Weights;
using weights::GroupedIntWeights;

/// Words that `count` values take in releases before 0.20, where no value straddles two words.
std::int64_t padded_words(std::int64_t count, std::int32_t bits) {
  const std::int64_t per_word = 32 / bits;
  return (count + per_word - 1) / per_word;
}

std::int64_t dense_words(std::int64_t count, std::int32_t bits) {
  return weights::packed_row_bytes(count, bits) / 4;
}

void unpack_padded(std::span<const std::int32_t> words, std::int32_t bits, std::span<std::uint8_t> values) {
  const auto per_word = static_cast<std::size_t>(32 / bits);
  const std::uint32_t mask = (1u << bits) - 1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto word = static_cast<std::uint32_t>(words[i / per_word]);
    values[i] = static_cast<std::uint8_t>((word >> (i % per_word * static_cast<std::size_t>(bits))) & mask);
  }
}

std::span<const std::uint8_t> bytes_of(std::span<const std::int32_t> words) {
  return {reinterpret_cast<const std::uint8_t*>(words.data()), words.size() * 4};
}

/// A matrix of words, one bit stream a row, in either width. Errors: Corrupt naming both.
TensorView get_streams(const ModuleTensors& tensors, std::string_view suffix, Shape dense, std::int64_t padded_cols) {
  const TensorView found = tensors.get(suffix);
  if (found.dtype() == DType::I32 && found.shape() == Shape{dense[0], padded_cols}) return found;
  return tensors.get(suffix, DType::I32, dense);
}

/// Canonical rows are the dense stream that the file has since 0.20.
Tensor read_packed_codes(const ModuleTensors& tensors, const GroupedIntWeights& w) {
  const std::int64_t words = dense_words(w.in_features, w.bits);
  const TensorView packed =
      get_streams(tensors, "weight_packed", {w.out_features, words}, padded_words(w.in_features, w.bits));
  if (packed.shape()[1] == words) {
    return Tensor::copy_of({packed.data(), DType::U8, {w.out_features, words * 4}});
  }
  Tensor codes = Tensor::empty(DType::U8, {w.out_features, words * 4});
  std::vector<std::uint8_t> row(static_cast<std::size_t>(w.in_features));
  const auto source = packed.matrix<std::int32_t>();
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    unpack_padded(source.row_span(o), w.bits, row);
    weights::pack_codes(row, w.bits, codes.matrix<std::uint8_t>().row_span(o));
  }
  return codes;
}

/// Signed values of one byte each, moved up by half the range. Errors: Corrupt where one is outside of it.
Tensor read_byte_codes(const ModuleTensors& tensors, const GroupedIntWeights& w) {
  const auto values = tensors.get("weight", DType::I8, {w.out_features, w.in_features}).matrix<std::int8_t>();
  const int offset = 1 << (w.bits - 1);
  Tensor codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  std::vector<std::uint8_t> row(static_cast<std::size_t>(w.in_features));
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const int value = values.row(o)[i];
      if (value < -offset || value >= offset) {
        throw Error(ErrorCode::Corrupt,
                    fmt::format("{}: {} in row {} is outside of {} bits", tensors.name("weight"), value, o, w.bits));
      }
      row[i] = static_cast<std::uint8_t>(value + offset);
    }
    weights::pack_codes(row, w.bits, codes.matrix<std::uint8_t>().row_span(o));
  }
  return codes;
}

/// [out, groups] in the file's dtype; one scale of a whole tensor is repeated.
Tensor read_scales(const ModuleTensors& tensors, CompressedStrategy strategy, std::int64_t out_features,
                   std::int64_t num_groups) {
  if (strategy == CompressedStrategy::Group || strategy == CompressedStrategy::Channel) {
    return Tensor::copy_of(tensors.get_float("weight_scale", {out_features, num_groups}));
  }
  const TensorView stored = tensors.get("weight_scale");
  const Tensor one =
      to_dtype(tensors.get_float("weight_scale", stored.shape().rank() == 0 ? Shape{} : Shape{1}), DType::F32);
  Tensor scales = Tensor::empty(DType::F32, {out_features, num_groups});
  std::ranges::fill(scales.span<float>(), one.span<float>()[0]);
  return scales;
}

Tensor middle_zeros(const GroupedIntWeights& w) {
  Tensor zeros = Tensor::empty(DType::I16, {w.out_features, w.num_groups()});
  std::ranges::fill(zeros.span<std::int16_t>(), static_cast<std::int16_t>(1 << (w.bits - 1)));
  return zeros;
}

/// Streams along the outputs, i32 [words, groups], as true zero points.
Tensor read_packed_zeros(const ModuleTensors& tensors, const GroupedIntWeights& w) {
  const std::int64_t words = dense_words(w.out_features, w.bits);
  const std::int64_t padded = padded_words(w.out_features, w.bits);
  const TensorView found = tensors.get("weight_zero_point");
  const bool is_padded = found.dtype() == DType::I32 && found.shape() == Shape{padded, w.num_groups()};
  const Tensor streams =
      transpose(is_padded ? found : tensors.get("weight_zero_point", DType::I32, {words, w.num_groups()}));
  Tensor zeros = Tensor::empty(DType::I16, {w.out_features, w.num_groups()});
  std::vector<std::uint8_t> column(static_cast<std::size_t>(w.out_features));
  for (std::int64_t g = 0; g < w.num_groups(); ++g) {
    const auto stream = streams.matrix<std::int32_t>().row_span(g);
    if (is_padded && padded != words) {
      unpack_padded(stream, w.bits, column);
    } else {
      weights::unpack_codes(bytes_of(stream), w.bits, column);
    }
    for (std::int64_t o = 0; o < w.out_features; ++o)
      zeros.matrix<std::int16_t>().row(o)[g] = column[static_cast<std::size_t>(o)];
  }
  return zeros;
}

/// Zero points as signed bytes: int-quantized, and symmetric schemes of old releases, which stored zeros.
Tensor read_byte_zeros(const ModuleTensors& tensors, const GroupedIntWeights& w, const CompressedScheme& scheme) {
  const auto stored = tensors.get("weight_zero_point", DType::I8, {w.out_features, w.num_groups()}).span<std::int8_t>();
  const int offset = 1 << (w.bits - 1);
  Tensor zeros = Tensor::empty(DType::I16, {w.out_features, w.num_groups()});
  const auto target = zeros.span<std::int16_t>();
  for (std::size_t i = 0; i < target.size(); ++i) {
    if (scheme.symmetric && stored[i] != 0) {
      throw Error(ErrorCode::Corrupt, fmt::format("{}: {} is not zero, but {} is symmetric",
                                                  tensors.name("weight_zero_point"), stored[i], scheme.name));
    }
    target[i] = static_cast<std::int16_t>(stored[i] + offset);
  }
  return zeros;
}

Tensor read_zeros(const ModuleTensors& tensors, const GroupedIntWeights& w, const CompressedScheme& scheme) {
  if (!tensors.contains("weight_zero_point")) {
    if (scheme.symmetric) return middle_zeros(w);
    throw Error(ErrorCode::Corrupt,
                fmt::format("{} is missing, but {} is not symmetric", tensors.name("weight_zero_point"), scheme.name));
  }
  if (tensors.get("weight_zero_point").dtype() == DType::I8) return read_byte_zeros(tensors, w, scheme);
  return read_packed_zeros(tensors, w);
}

/// Group of each input; empty where it is i / group_size, or was never set (all -1).
Tensor read_weight_g_idx(const ModuleTensors& tensors, const GroupedIntWeights& w) {
  if (!tensors.contains("weight_g_idx")) return {};
  const TensorView stored = tensors.get("weight_g_idx", DType::I32, {w.in_features});
  const auto groups = stored.span<std::int32_t>();
  if (std::ranges::all_of(groups, [](std::int32_t group) { return group == -1; })) return {};
  bool is_trivial = true;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i] < 0 || groups[i] >= w.num_groups()) {
      throw Error(ErrorCode::Corrupt, fmt::format("{}: entry {} is outside the {} groups", tensors.name("weight_g_idx"),
                                                  groups[i], w.num_groups()));
    }
    is_trivial = is_trivial && groups[i] == static_cast<std::int64_t>(i) / w.group_size;
  }
  return is_trivial ? Tensor{} : Tensor::copy_of(stored);
}

void check_weight_shape(const ModuleTensors& tensors, const Shape& shape) {
  if (!tensors.contains("weight_shape")) return;  // the packed widths are checked in any case
  const TensorView stored = tensors.get("weight_shape");
  std::vector<std::int64_t> sizes;
  if (stored.dtype() == DType::I64) {
    const auto values = stored.span<std::int64_t>();
    sizes.assign(values.begin(), values.end());
  } else {
    const auto values = tensors.get("weight_shape", DType::I32, {2}).span<std::int32_t>();
    sizes.assign(values.begin(), values.end());
  }
  if (std::ranges::equal(sizes, shape.sizes())) return;
  throw Error(ErrorCode::Corrupt, fmt::format("{}: says [{}], expected {}", tensors.name("weight_shape"),
                                              fmt::join(sizes, ", "), shape.to_string()));
}

GroupedIntWeights read_integers(const ModuleTensors& tensors, const CompressedScheme& scheme, const Shape& shape) {
  GroupedIntWeights w;
  w.out_features = shape[0];
  w.in_features = shape[1];
  w.bits = scheme.bits;
  w.group_size = scheme.group_size == -1 ? w.in_features : std::min(scheme.group_size, w.in_features);
  const std::int64_t num_groups = (w.in_features + w.group_size - 1) / w.group_size;
  const bool is_packed = scheme.layout == CompressedLayout::PackQuantized;
  if (is_packed) check_weight_shape(tensors, shape);
  w.codes = is_packed ? read_packed_codes(tensors, w) : read_byte_codes(tensors, w);
  w.scales = read_scales(tensors, scheme.strategy, w.out_features, num_groups);
  w.zeros = read_zeros(tensors, w, scheme);
  w.g_idx = read_weight_g_idx(tensors, w);
  return w;
}

Fp8Weights read_floats(const ModuleTensors& tensors, const CompressedScheme& scheme, const Shape& shape) {
  Fp8Weights w;
  w.weight = Tensor::borrow(tensors.get("weight", DType::F8E4M3, shape));
  if (scheme.strategy == CompressedStrategy::Block) {
    w.block_size = scheme.group_size;
    const std::int64_t rows = (shape[0] + w.block_size - 1) / w.block_size;
    const std::int64_t cols = (shape[1] + w.block_size - 1) / w.block_size;
    w.scale = to_dtype(tensors.get_float("weight_scale", {rows, cols}), DType::F32);
  } else {
    const std::int64_t rows = scheme.strategy == CompressedStrategy::Channel ? shape[0] : 1;
    const Tensor scales = read_scales(tensors, scheme.strategy, rows, 1);
    w.scale = Tensor::empty(DType::F32, {rows});
    convert({scales.view().data(), scales.dtype(), {rows}}, w.scale.mutable_view());
  }
  if (tensors.contains("input_scale")) {
    const TensorView stored = tensors.get("input_scale");
    const Tensor scale =
        to_dtype(tensors.get_float("input_scale", stored.shape().rank() == 0 ? Shape{} : Shape{1}), DType::F32);
    w.input_scale = scale.span<float>()[0];
  }
  return w;
}

/// [out, groups] in f16 or bf16: what peers' kernels take.
Tensor scales_as_stored(const GroupedIntWeights& w) {
  Tensor scales = w.scales.dtype() == DType::BF16 ? Tensor::copy_of(w.scales) : to_dtype(w.scales, DType::F16);
  check_scales_to_write(scales);
  return scales;
}

bool is_symmetric(const GroupedIntWeights& w) {
  const auto middle = static_cast<std::int16_t>(1 << (w.bits - 1));
  return std::ranges::all_of(w.zeros.span<std::int16_t>(), [&](std::int16_t zero) { return zero == middle; });
}

Tensor pack_zeros(const GroupedIntWeights& w) {
  const std::int64_t words = dense_words(w.out_features, w.bits);
  Tensor streams = Tensor::empty(DType::I32, {w.num_groups(), words});
  std::vector<std::uint8_t> column(static_cast<std::size_t>(w.out_features));
  for (std::int64_t g = 0; g < w.num_groups(); ++g) {
    for (std::int64_t o = 0; o < w.out_features; ++o) {
      const std::int16_t zero = w.zeros.matrix<std::int16_t>().row(o)[g];
      if (zero < 0 || zero >= 1 << w.bits) {
        throw Error(ErrorCode::Unsupported,
                    fmt::format("zero point {} is outside 0…{}, all that the format holds", zero, (1 << w.bits) - 1));
      }
      column[static_cast<std::size_t>(o)] = static_cast<std::uint8_t>(zero);
    }
    auto* row = reinterpret_cast<std::uint8_t*>(streams.matrix<std::int32_t>().row(g));
    weights::pack_codes(column, w.bits, {row, static_cast<std::size_t>(words) * 4});
  }
  return transpose(streams);
}

std::vector<NamedTensor> write_integers(const GroupedIntWeights& w) {
  if (w.has_g_idx()) {
    throw Error(ErrorCode::Unsupported,
                "compressed-tensors has no act-order groups any more, so weights with a g_idx do not fit; write gptq");
  }
  if (w.first_group_offset != 0 || w.in_features % w.group_size != 0) {
    throw Error(ErrorCode::Unsupported, fmt::format("compressed-tensors needs whole groups, and group_size {} does not "
                                                    "divide {} inputs",
                                                    w.group_size, w.in_features));
  }
  std::vector<NamedTensor> tensors;
  // First: its eight-byte values need an aligned place, which an odd number of zero points would take away.
  const std::int64_t sizes[] = {w.out_features, w.in_features};
  tensors.push_back({"weight_shape", Tensor::copy_of({sizes, DType::I64, {2}})});
  const std::int64_t words = dense_words(w.in_features, w.bits);
  tensors.push_back({"weight_packed", Tensor::copy_of({w.codes.view().data(), DType::I32, {w.out_features, words}})});
  tensors.push_back({"weight_scale", scales_as_stored(w)});
  if (!is_symmetric(w)) tensors.push_back({"weight_zero_point", pack_zeros(w)});
  return tensors;
}

std::vector<NamedTensor> write_floats(const Fp8Weights& w) {
  std::vector<NamedTensor> tensors;
  tensors.push_back({"weight", Tensor::copy_of(w.weight)});
  const bool is_block = w.block_size > 0;
  const std::int64_t num_scales = w.scale.num_elements();
  const Shape shape = is_block ? w.scale.shape() : num_scales == 1 ? Shape{1} : Shape{num_scales, 1};
  tensors.push_back({"weight_scale", Tensor::copy_of({w.scale.view().data(), DType::F32, shape})});
  if (w.input_scale > 0) {
    tensors.push_back({"input_scale", Tensor::copy_of({&w.input_scale, DType::F32, {1}})});
  }
  return tensors;
}

}  // namespace

QuantizationConfig parse_compressed_tensors_config(const Json& raw) {
  const CompressedConfig parsed = parse_compressed_config(raw);
  QuantizationConfig config;
  config.checkpoint_format = get_or<std::string>(raw, "format", "dense");
  config.modules_to_not_convert = parsed.ignore;
  for (const CompressedScheme& scheme : parsed.schemes) {
    if (scheme.quantizes_activations && scheme.layout != CompressedLayout::FloatQuantized) {
      log::info("compressed-tensors {}: activations stay in higher precision than the config asks for", scheme.name);
    }
  }
  // The first group stands for the checkpoint where one line describes it; modules go by their own.
  const auto first = std::ranges::find_if(
      parsed.schemes, [](const CompressedScheme& scheme) { return scheme.layout != CompressedLayout::Dense; });
  if (first == parsed.schemes.end()) return config;
  config.bits = first->bits;
  config.group_size = first->group_size;
  config.sym = first->symmetric;
  return config;
}

Json make_compressed_tensors_config(const QuantizationConfig& config) {
  ModuleScheme all;
  all.bits = config.bits;
  all.group_size = config.group_size;
  all.sym = config.sym;
  Json json =
      make_compressed_config(config.modules.empty() ? std::vector{all} : config.modules, modules_kept_float(config));
  if (config.raw.is_object() && config.raw.contains("kv_cache_scheme")) {
    json["kv_cache_scheme"] = config.raw["kv_cache_scheme"];
  }
  return json;
}

weights::LinearWeights read_compressed_tensors(const ModuleTensors& tensors, const QuantizationConfig& config,
                                               const Shape& shape) {
  const CompressedConfig parsed = parse_compressed_config(config.raw);
  const CompressedScheme* scheme = parsed.scheme_of(tensors.module());
  if (scheme == nullptr || scheme->layout == CompressedLayout::Dense) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: is quantized in the file, but config.json ignores it or has no "
                                                "group that targets it",
                                                tensors.module()));
  }
  if (scheme->layout == CompressedLayout::FloatQuantized) return read_floats(tensors, *scheme, shape);
  return read_integers(tensors, *scheme, shape);
}

std::vector<NamedTensor> write_compressed_tensors(const weights::LinearWeights& weights) {
  if (const auto* grouped = std::get_if<GroupedIntWeights>(&weights)) return write_integers(*grouped);
  if (const auto* floats = std::get_if<Fp8Weights>(&weights)) return write_floats(*floats);
  refuse_kind(weights, "compressed-tensors");
}

}  // namespace nibble::formats
