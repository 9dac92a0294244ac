#include "formats/squeezellm.h"

#include <fmt/format.h>

#include <algorithm>

#include "formats/transpose.h"
#include "weights/kinds.h"

namespace nibble::formats {
namespace {

using weights::CodebookWeights;

std::int32_t bits_of_table(const ModuleTensors& tensors, std::int64_t out_features) {
  const Shape found = tensors.get("lookup_table").shape();
  for (const std::int32_t bits : {3, 4}) {
    if (found == Shape{out_features, std::int64_t{1} << bits}) return bits;
  }
  throw Error(ErrorCode::Corrupt,
              fmt::format("{}: expected [{}, 8] for 3 bits or [{}, 16] for 4, found {}", tensors.name("lookup_table"),
                          out_features, out_features, found.to_string()));
}

/// f16 as it stands, everything else as f32.
Tensor read_table(const ModuleTensors& tensors, const Shape& shape) {
  const TensorView table = tensors.get_float("lookup_table", shape);
  return table.dtype() == DType::F16 ? Tensor::copy_of(table) : to_dtype(table, DType::F32);
}

/// f32 [in, n] of a hybrid file, and which output each column belongs to.
struct FullRows {
  Tensor values;
  Tensor indices;
};

FullRows read_full_rows(const ModuleTensors& tensors, const Shape& shape) {
  if (!tensors.contains("full_rows")) return {};
  const std::int64_t count = tensors.get("full_row_indices").num_elements();
  if (count == 0) return {};
  const TensorView indices = tensors.get("full_row_indices", DType::I32, {count});
  for (const std::int32_t row : indices.span<std::int32_t>()) {
    if (row >= 0 && row < shape[0]) continue;
    throw Error(ErrorCode::Corrupt,
                fmt::format("{}: {} is none of the {} outputs", tensors.name("full_row_indices"), row, shape[0]));
  }
  return {to_dtype(tensors.get_float("full_rows", {shape[1], count}), DType::F32), Tensor::copy_of(indices)};
}

void read_sparse(const ModuleTensors& tensors, CodebookWeights& w) {
  if (!tensors.contains("rows") && !tensors.contains("vals")) return;
  const std::int64_t num_values = tensors.get("vals").num_elements();
  w.rows = Tensor::copy_of(tensors.get("rows", DType::I32, {w.out_features + 1}));
  w.cols = Tensor::copy_of(tensors.get("cols", DType::I32, {num_values}));
  w.vals = to_dtype(tensors.get_float("vals", {num_values}), DType::F32);
}

/// The entries of full rows behind those that the CSR has of the same output.
void add_full_rows(const FullRows& full, CodebookWeights& w) {
  std::vector<std::int32_t> rows{0};
  std::vector<std::int32_t> cols;
  std::vector<float> vals;
  const auto indices = full.indices.span<std::int32_t>();
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    if (!w.rows.is_empty()) {
      const auto begin = static_cast<std::size_t>(w.rows.span<std::int32_t>()[static_cast<std::size_t>(o)]);
      const auto end = static_cast<std::size_t>(w.rows.span<std::int32_t>()[static_cast<std::size_t>(o) + 1]);
      for (std::size_t j = begin; j < end; ++j) {
        cols.push_back(w.cols.span<std::int32_t>()[j]);
        vals.push_back(w.vals.span<float>()[j]);
      }
    }
    for (std::size_t t = 0; t < indices.size(); ++t) {
      if (indices[t] != o) continue;
      for (std::int64_t i = 0; i < w.in_features; ++i) {
        const float value = full.values.matrix<float>().row(i)[t];
        if (value == 0) continue;
        cols.push_back(static_cast<std::int32_t>(i));
        vals.push_back(value);
      }
    }
    rows.push_back(static_cast<std::int32_t>(cols.size()));
  }
  const auto count = static_cast<std::int64_t>(cols.size());
  w.rows = Tensor::copy_of({rows.data(), DType::I32, {w.out_features + 1}});
  w.cols = Tensor::copy_of({cols.data(), DType::I32, {count}});
  w.vals = Tensor::copy_of({vals.data(), DType::F32, {count}});
}

}  // namespace

QuantizationConfig parse_squeezellm_config(const Json& raw) {
  QuantizationConfig config;
  const auto wbits = get_optional<std::int64_t>(raw, "wbits");
  const std::int64_t bits = wbits ? *wbits : get_or<std::int64_t>(raw, "bits", 4);
  if (bits != 3 && bits != 4) {
    throw Error(ErrorCode::Unsupported, fmt::format("wbits {} is not read; SqueezeLLM has 3 and 4", bits));
  }
  config.bits = static_cast<std::int32_t>(bits);
  config.group_size = -1;
  config.sym = false;
  config.checkpoint_format = "squeezellm";
  if (raw.contains("modules_to_not_convert") && !raw["modules_to_not_convert"].is_null()) {
    config.modules_to_not_convert = get<std::vector<std::string>>(raw, "modules_to_not_convert");
  }
  return config;
}

Json make_squeezellm_config(const QuantizationConfig& config) {
  const double sparsity = config.raw.is_object() ? get_or(config.raw, "sparsity", 0.0) : 0.0;
  const std::vector<std::string> kept = modules_kept_float(config);
  Json json{{"quant_method", "squeezellm"},   {"wbits", config.bits}, {"bits", config.bits},
            {"include_sparse", sparsity > 0}, {"sparsity", sparsity}, {"modules_to_not_convert", kept}};
  if (config.raw.is_object() && config.raw.contains("meta")) json["meta"] = config.raw["meta"];
  return json;
}

std::vector<std::pair<std::string, std::string>> make_squeezellm_side_files(const QuantizationConfig& config) {
  return {{"quant_config.json", Json{{"wbits", config.bits}}.dump() + "\n"}};
}

weights::LinearWeights read_squeezellm(const ModuleTensors& tensors, const QuantizationConfig&, const Shape& shape) {
  CodebookWeights w;
  w.out_features = shape[0];
  w.in_features = shape[1];
  w.bits = bits_of_table(tensors, w.out_features);
  const std::int64_t bits_of_row = checked_multiply(w.in_features, w.bits);
  if (bits_of_row % 32 != 0) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: {} inputs of {} bits do not fill whole words",
                                                tensors.name("qweight"), w.in_features, w.bits));
  }
  const std::int64_t words = bits_of_row / 32;
  const Tensor rows = transpose(tensors.get("qweight", DType::I32, {words, w.out_features}));
  w.codes = Tensor::copy_of({rows.view().data(), DType::U8, {w.out_features, words * 4}});
  w.lookup_table = read_table(tensors, {w.out_features, std::int64_t{1} << w.bits});
  read_sparse(tensors, w);
  const FullRows full = read_full_rows(tensors, shape);
  if (full.indices.is_empty()) return w;
  try {
    weights::validate_kind(w);  // before rows are followed
  } catch (const Error& error) {
    throw error.in(tensors.module());
  }
  add_full_rows(full, w);
  return w;
}

std::vector<NamedTensor> write_squeezellm(const weights::CodebookWeights& w) {
  if (w.in_features * w.bits % 32 != 0) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("SqueezeLLM packs {} inputs together at {} bits, which {} inputs do not fill; leave this "
                            "layer in f16",
                            w.bits == 3 ? 32 : 8, w.bits, w.in_features));
  }
  // The canonical rows are the same bit stream, so a row of codes is a column of qweight's words.
  const TensorView words(w.codes.view().data(), DType::I32, {w.out_features, w.in_features * w.bits / 32});
  std::vector<NamedTensor> tensors;
  tensors.push_back({"qweight", transpose(words)});
  tensors.push_back({"lookup_table", Tensor::copy_of(w.lookup_table)});
  if (w.vals.num_elements() == 0) return tensors;
  tensors.push_back({"rows", Tensor::copy_of(w.rows)});
  tensors.push_back({"cols", Tensor::copy_of(w.cols)});
  tensors.push_back({"vals", Tensor::copy_of(w.vals)});
  return tensors;
}

}  // namespace nibble::formats
