#include "formats/gguf_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "core/file.h"
#include "formats/gguf.h"
#include "formats/gguf_config.h"
#include "formats/gguf_tokenizer.h"
#include "formats/linear_format.h"
#include "formats/safetensors.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntWeights;

constexpr std::int64_t kGroupSize = 32;  // a block of Q4_0 and Q8_0

std::optional<DType> float_dtype(GgufType type) {
  switch (type) {
    case GgufType::F32: return DType::F32;
    case GgufType::F16: return DType::F16;
    case GgufType::BF16: return DType::BF16;
    default: return std::nullopt;
  }
}

std::int64_t num_rows(const GgufSource& source) {
  return source.tensor->shape.rank() == 1 && source.interleaved_heads == 0 ? 1 : source.tensor->shape[0];
}

/// Bytes of row `row` of the Hugging Face tensor, as they stand in the file.
std::span<const std::byte> row_bytes(const GgufSource& source, std::int64_t row) {
  const std::size_t size = source.tensor->bytes.size() / static_cast<std::size_t>(num_rows(source));
  return source.tensor->bytes.subspan(static_cast<std::size_t>(source.file_row(row)) * size, size);
}

/// The rows in Hugging Face's order, in their own float dtype.
Tensor copy_float_rows(const GgufSource& source, DType dtype) {
  Tensor copy = Tensor::empty(dtype, source.tensor->shape);
  auto* target = static_cast<std::byte*>(copy.mutable_view().data());
  for (std::int64_t r = 0; r < num_rows(source); ++r) {
    const auto row = row_bytes(source, r);
    target = std::copy(row.begin(), row.end(), target);
  }
  return copy;
}

Tensor dequantize_to_half(const GgufSource& source) {
  Tensor half = Tensor::empty(DType::F16, source.tensor->shape);
  const auto values = half.span<Half>();
  std::vector<float> row(values.size() / static_cast<std::size_t>(num_rows(source)));
  for (std::int64_t r = 0; r < num_rows(source); ++r) {
    dequantize_gguf(source.tensor->type, row_bytes(source, r), row);
    const auto target = values.subspan(static_cast<std::size_t>(r) * row.size(), row.size());
    for (std::size_t i = 0; i < row.size(); ++i) {
      target[i] = to_half(row[i]);
      if (!std::isfinite(to_float(target[i]))) {
        throw Error(ErrorCode::Corrupt, fmt::format("row {} holds {}, which is no finite f16", r, row[i]));
      }
    }
  }
  return half;
}

/// Codes of one block into `codes`: Q4_0 as stored, Q8_0 shifted to be unsigned.
void read_codes(GgufType type, const std::byte* quants, std::uint8_t* codes) {
  for (int j = 0; j < kGroupSize; ++j) {
    if (type == GgufType::Q8_0) {
      codes[j] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(quants[j]) ^ 0x80u);
    } else {
      const auto byte = static_cast<std::uint8_t>(quants[j % 16]);
      codes[j] = static_cast<std::uint8_t>(j < 16 ? byte & 15u : byte >> 4);
    }
  }
}

GroupedIntWeights read_grouped(const GgufSource& source) {
  const GgufType type = source.tensor->type;
  const std::int64_t block_bytes = layout_of(type).block_bytes;
  GroupedIntWeights w;
  w.out_features = source.tensor->shape[0];
  w.in_features = source.tensor->shape[1];
  w.bits = type == GgufType::Q8_0 ? 8 : 4;
  w.group_size = kGroupSize;
  const std::int64_t num_groups = w.in_features / kGroupSize;
  w.codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  w.scales = Tensor::empty(DType::F16, {w.out_features, num_groups});
  w.zeros = Tensor::empty(DType::I16, {w.out_features, num_groups});
  std::ranges::fill(w.zeros.span<std::int16_t>(), static_cast<std::int16_t>(1 << (w.bits - 1)));

  std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.in_features));
  for (std::int64_t r = 0; r < w.out_features; ++r) {
    const std::byte* block = row_bytes(source, r).data();
    Half* scales = w.scales.matrix<Half>().row(r);
    for (std::int64_t g = 0; g < num_groups; ++g, block += block_bytes) {
      std::memcpy(&scales[g].bits, block, 2);
      read_codes(type, block + 2, codes.data() + g * kGroupSize);
    }
    weights::pack_codes(codes, w.bits, w.codes.matrix<std::uint8_t>().row_span(r));
  }
  return w;
}

/// What most of the quantized bytes of the blocks' matrices are; nothing where all are floats.
std::optional<QuantizationConfig> describe_quantization(const GgufFile& file) {
  std::map<GgufType, std::size_t> bytes_of_type;
  for (const auto& [name, tensor] : file.tensors()) {
    if (tensor.shape.rank() != 2 || !name.starts_with("blk.") || float_dtype(tensor.type)) continue;
    bytes_of_type[tensor.type] += tensor.bytes.size();
  }
  if (bytes_of_type.empty()) return std::nullopt;
  const GgufType type =
      std::ranges::max_element(bytes_of_type, {}, [](const auto& entry) { return entry.second; })->first;
  const GgufTypeLayout& layout = layout_of(type);
  QuantizationConfig config;
  config.method = "gguf";
  config.bits = layout.name[1] - '0';
  config.group_size = kGroupSize;
  config.sym = type == GgufType::Q4_0 || type == GgufType::Q5_0 || type == GgufType::Q8_0;
  config.checkpoint_format = layout.name;
  config.raw = {{"quant_method", "gguf"}, {"type", layout.name}};
  return config;
}

void refuse_split_file(const GgufFile& file) {
  if (file.integer("split.count").value_or(1) <= 1) return;
  throw Error(ErrorCode::Unsupported,
              "one part of a split GGUF file; join the parts first: llama-gguf-split --merge FIRST-PART OUTPUT");
}

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(MappedFile mapped)
      : mapped_(std::move(mapped)),
        file_(GgufFile::parse(mapped_.bytes())),
        config_(make_config(file_)),
        quantization_(describe_quantization(file_)),
        sources_(hugging_face_tensors(file_)) {
    refuse_split_file(file_);
  }

  const std::filesystem::path& path() const override { return mapped_.path(); }
  const Json& config() const override { return config_; }
  const std::optional<QuantizationConfig>& quantization() const override { return quantization_; }

  std::optional<std::string> side_file(std::string_view name) const override {
    try {
      if (name == "tokenizer.json") return make_tokenizer_json(file_);
      if (name == "tokenizer_config.json") return make_tokenizer_config(file_).dump(2) + "\n";
      if (name == "generation_config.json") return make_generation_config(file_).dump(2) + "\n";
    } catch (const Error& error) {
      throw error.in(path().string());
    }
    return std::nullopt;
  }

  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    for (const auto& [name, source] : sources_) names.push_back(name);
    return names;
  }

  bool contains(std::string_view tensor) const override { return sources_.find(tensor) != sources_.end(); }

  TensorView tensor(std::string_view name) const override {
    const auto found = sources_.find(name);
    if (found == sources_.end())
      throw Error(ErrorCode::NotFound, fmt::format("{}: no tensor {}", path().string(), name));
    const GgufSource& source = found->second;
    if (is_borrowable(source)) return borrow(source);
    const std::lock_guard lock(made_mutex_);
    const auto made = made_.find(name);
    if (made != made_.end()) return made->second.view();
    return made_.emplace(found->first, make_in_context(found->first, source)).first->second.view();
  }

  weights::LinearWeights linear(std::string_view module, const Shape& shape) const override {
    const std::string name = std::string(module) + ".weight";
    const auto found = sources_.find(name);
    if (found == sources_.end())
      throw Error(ErrorCode::NotFound, fmt::format("{}: no tensor {}", path().string(), name));
    const GgufSource& source = found->second;
    if (source.tensor->shape != shape) {
      throw Error(ErrorCode::Corrupt, fmt::format("{}: {}: expected shape {}, found {}", path().string(), name,
                                                  shape.to_string(), source.tensor->shape.to_string()));
    }
    if (is_borrowable(source)) return weights::DenseWeights{Tensor::borrow(borrow(source))};
    const GgufType type = source.tensor->type;
    if (type != GgufType::Q4_0 && type != GgufType::Q8_0) {
      return weights::DenseWeights{make_in_context(name, source)};
    }
    weights::LinearWeights grouped = read_grouped(source);
    try {
      weights::validate(grouped);
    } catch (const Error& error) {
      throw error.in(name).in(path().string());
    }
    return grouped;
  }

  Tensor bias(std::string_view module, std::int64_t out_features) const override {
    try {
      return read_bias({*this, module}, out_features);
    } catch (const Error& error) {
      throw error.in(path().string());
    }
  }

  void drop_pages(std::string_view module) const override {
    const std::string prefix = std::string(module) + ".";
    for (auto it = sources_.lower_bound(prefix); it != sources_.end() && it->first.starts_with(prefix); ++it) {
      mapped_.release(it->second.tensor->bytes);
    }
  }

  void release(std::string_view module) const override {
    drop_pages(module);
    const std::string prefix = std::string(module) + ".";
    const std::lock_guard lock(made_mutex_);
    std::erase_if(made_, [&](const auto& made) { return made.first.starts_with(prefix); });
  }

  std::int64_t size_bytes() const override {
    std::int64_t total = 0;
    for (const auto& [name, source] : sources_) total += static_cast<std::int64_t>(source.tensor->bytes.size());
    return total;
  }

 private:
  /// Whether the file's own bytes are the tensor.
  static bool is_borrowable(const GgufSource& source) {
    return float_dtype(source.tensor->type).has_value() && source.interleaved_heads == 0;
  }
  static TensorView borrow(const GgufSource& source) {
    return {source.tensor->bytes.data(), *float_dtype(source.tensor->type), source.tensor->shape};
  }

  Tensor make_in_context(const std::string& name, const GgufSource& source) const {
    try {
      const auto dtype = float_dtype(source.tensor->type);
      return dtype ? copy_float_rows(source, *dtype) : dequantize_to_half(source);
    } catch (const Error& error) {
      throw error.in(name).in(path().string());
    }
  }

  MappedFile mapped_;
  GgufFile file_;
  Json config_;
  std::optional<QuantizationConfig> quantization_;
  std::map<std::string, GgufSource, std::less<>> sources_;
  mutable std::mutex made_mutex_;
  mutable std::map<std::string, Tensor, std::less<>> made_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_gguf(const std::filesystem::path& path) {
  try {
    MappedFile mapped = MappedFile::open(path);
    refuse_lfs_pointer(mapped.bytes());
    return std::make_unique<GgufCheckpoint>(std::move(mapped));
  } catch (const Error& error) {
    if (std::string_view(error.what()).starts_with(path.string())) throw;  // MappedFile names it already
    throw error.in(path.string());
  }
}

}  // namespace nibble::formats
