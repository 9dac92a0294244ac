#include "formats/folder_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "core/file.h"
#include "formats/linear_format.h"
#include "formats/quantization_config.h"
#include "formats/safetensors.h"
#include "formats/shard_index.h"
#include "formats/squeezellm.h"
#include "formats/torch_file.h"

namespace nibble::formats {
namespace {

constexpr std::string_view kTorchIndex = "pytorch_model.bin.index.json";

/// Names in `folder`, sorted, that end with `suffix`.
std::vector<std::string> names_ending_with(const std::filesystem::path& folder, std::string_view suffix) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::string name = entry.path().filename().string();
    if (name.ends_with(suffix)) names.push_back(std::move(name));
  }
  if (error) {
    throw Error(ErrorCode::Unavailable, fmt::format("{}: cannot list: {}", folder.string(), error.message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Where nothing says which file counts, the base name of the quantization config, then the usual names.
std::string choose_single_file(const std::filesystem::path& folder, const std::vector<std::string>& names,
                               const std::optional<QuantizationConfig>& quantization) {
  const auto has = [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (quantization && quantization->raw.is_object()) {
    const auto base = get_optional<std::string>(quantization->raw, "model_file_base_name");
    if (base && has(*base + ".safetensors")) return *base + ".safetensors";
  }
  if (has("model.safetensors")) return "model.safetensors";
  std::vector<std::string> gptq;
  std::copy_if(names.begin(), names.end(), std::back_inserter(gptq),
               [](const std::string& name) { return name.starts_with("gptq_model-"); });
  if (gptq.size() == 1) return gptq.front();
  if (names.size() == 1) return names.front();
  throw Error(ErrorCode::NotFound,
              fmt::format("{}: {} safetensors files and no model.safetensors.index.json to say which tensor is where",
                          folder.string(), names.size()));
}

[[noreturn]] void refuse_folder_without_weights(const std::filesystem::path& folder) {
  const std::vector<std::string> gguf = names_ending_with(folder, ".gguf");
  if (!gguf.empty()) {
    throw Error(ErrorCode::NotFound, fmt::format("{}: holds no safetensors; pass the GGUF file itself: {}",
                                                 folder.string(), (folder / gguf.front()).string()));
  }
  throw Error(ErrorCode::NotFound, fmt::format("{}: no safetensors file", folder.string()));
}

/// The one file of torch.save in a folder without safetensors: pytorch_model.bin, or the only one there is.
std::string choose_torch_file(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const char* suffix : {".bin", ".pt", ".pth"}) {
    for (std::string& name : names_ending_with(folder, suffix)) names.push_back(std::move(name));
  }
  if (names.empty()) refuse_folder_without_weights(folder);
  if (std::ranges::find(names, "pytorch_model.bin") != names.end()) return "pytorch_model.bin";
  if (names.size() == 1) return names.front();
  throw Error(
      ErrorCode::NotFound,
      fmt::format("{}: {} files of torch.save ({}, {}, …) and no pytorch_model.bin or index among them; keep one "
                  "in the folder",
                  folder.string(), names.size(), names[0], names[1]));
}

Json read_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  if (std::filesystem::symlink_status(path).type() == std::filesystem::file_type::not_found) {
    throw Error(ErrorCode::NotFound, fmt::format("{}: no config.json; a model folder needs one", folder.string()));
  }
  Json config = read_json_file(path);
  if (!config.is_object()) throw Error(ErrorCode::InvalidArgument, path.string() + ": expected an object");
  return config;
}

class FolderCheckpoint final : public Checkpoint {
 public:
  explicit FolderCheckpoint(std::filesystem::path folder)
      : folder_(std::move(folder)),
        config_(read_config(folder_)),
        quantization_(find_quantization_config(config_, folder_)) {
    open_shards();
    infer_quantization();
  }

  const std::filesystem::path& path() const override { return folder_; }
  const Json& config() const override { return config_; }
  const std::optional<QuantizationConfig>& quantization() const override { return quantization_; }

  std::optional<std::string> side_file(std::string_view name) const override {
    check(is_plain_file_name(name), "side_file of a name with a path");
    const std::filesystem::path path = folder_ / name;
    if (std::filesystem::symlink_status(path).type() == std::filesystem::file_type::not_found) return std::nullopt;
    std::string text = read_text_file(path);
    try {
      refuse_lfs_pointer(std::as_bytes(std::span(text)));
    } catch (const Error& error) {
      throw error.in(path.string());
    }
    return text;
  }

  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    names.reserve(tensors_.size());
    for (const auto& [name, place] : tensors_) names.push_back(name);
    return names;
  }

  bool contains(std::string_view tensor) const override { return tensors_.find(tensor) != tensors_.end(); }

  TensorView tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      throw Error(ErrorCode::NotFound, fmt::format("{}: no tensor {}", folder_.string(), name));
    }
    try {
      return view(found->first, found->second);
    } catch (const Error& error) {
      throw error.in(name).in(found->second.file->path().string());
    }
  }

  weights::LinearWeights linear(std::string_view module, const Shape& shape) const override {
    try {
      return read_linear({*this, module}, shape);
    } catch (const Error& error) {
      throw error.in(folder_.string());
    }
  }

  Tensor bias(std::string_view module, std::int64_t out_features) const override {
    try {
      return read_bias({*this, module}, out_features);
    } catch (const Error& error) {
      throw error.in(folder_.string());
    }
  }

  void drop_pages(std::string_view module) const override {
    const std::string prefix = std::string(module) + ".";
    for (auto it = tensors_.lower_bound(prefix); it != tensors_.end() && it->first.starts_with(prefix); ++it) {
      it->second.file->release(*it->second.entry);
    }
  }

  void release(std::string_view module) const override {
    drop_pages(module);
    const std::string prefix = std::string(module) + ".";
    const std::lock_guard lock(realigned_mutex_);
    std::erase_if(realigned_, [&](const auto& made) { return made.first.starts_with(prefix); });
  }

  std::int64_t size_bytes() const override {
    std::int64_t total = 0;
    for (const auto& [name, place] : tensors_)
      total += static_cast<std::int64_t>(place.entry->end - place.entry->begin);
    return total;
  }

 private:
  struct Place {
    const TensorFile* file;
    const TensorEntry* entry;
  };

  void open_shards() {
    if (const auto index_path = find_index()) {
      try {
        open_indexed(read_shard_index(*index_path));
      } catch (const Error& error) {
        throw error.in(index_path->string());
      }
      return;
    }
    const std::vector<std::string> names = names_ending_with(folder_, ".safetensors");
    const TensorFile& file =
        open_file(names.empty() ? choose_torch_file(folder_) : choose_single_file(folder_, names, quantization_));
    for (const auto& [name, entry] : file.header()) tensors_.emplace(name, Place{&file, &entry});
  }

  std::optional<std::filesystem::path> find_index() const {
    auto index = find_shard_index(folder_);
    return index ? index : find_torch_index();
  }

  /// Of shards by torch.save, where there is nothing better.
  std::optional<std::filesystem::path> find_torch_index() const {
    const bool has_safetensors = !names_ending_with(folder_, ".safetensors").empty();
    if (has_safetensors || !std::filesystem::exists(folder_ / kTorchIndex)) return std::nullopt;
    return folder_ / kTorchIndex;
  }

  /// The published files of SqueezeLLM come without a word on how they are quantized; their tables say it.
  void infer_quantization() {
    if (quantization_) return;
    for (const auto& [name, place] : tensors_) {
      if (!name.ends_with(".lookup_table") || place.entry->sizes.size() != 2) continue;
      quantization_ = parse_squeezellm_config({{"wbits", place.entry->sizes[1] == 8 ? 3 : 4}});
      quantization_->method = "squeezellm";
      return;
    }
  }

  const TensorFile& open_file(const std::string& name) {
    const auto found = files_.find(name);
    if (found != files_.end()) return found->second;
    const std::filesystem::path path = folder_ / name;
    return files_.emplace(name, name.ends_with(".safetensors") ? open_safetensors(path) : open_torch_file(path))
        .first->second;
  }

  void open_indexed(const ShardIndex& index) {
    for (const auto& [name, file_name] : index) {
      const TensorFile& file = open_file(file_name);
      const auto entry = file.header().find(name);
      if (entry == file.header().end()) {
        throw Error(ErrorCode::Corrupt, fmt::format("{} should hold {}, but does not", file_name, name));
      }
      tensors_.emplace(name, Place{&file, &entry->second});
    }
    for (const auto& [file_name, file] : files_) {
      for (const auto& [name, entry] : file.header()) {
        const auto listed = index.find(name);
        if (listed == index.end() || listed->second == file_name) continue;
        throw Error(ErrorCode::Corrupt,
                    fmt::format("{} stands in two shards, {} and {}", name, listed->second, file_name));
      }
    }
  }

  TensorView view(const std::string& name, const Place& place) const {
    const TensorEntry& entry = *place.entry;
    if (!entry.fault.empty()) throw Error(ErrorCode::Unsupported, entry.fault);
    if (!entry.dtype) {
      throw Error(ErrorCode::Unsupported, fmt::format("dtype {} is not supported", entry.dtype_name));
    }
    const Shape shape(entry.sizes);
    const std::span<const std::byte> bytes = place.file->bytes(entry);
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % nibble::size_bytes(*entry.dtype) == 0) {
      return {bytes.data(), *entry.dtype, shape};
    }
    // Writers of 2022 did not align; a copy stands in, until it is released.
    const std::lock_guard lock(realigned_mutex_);
    const auto [copy, is_new] = realigned_.try_emplace(name);
    if (is_new) {
      copy->second = Tensor::empty(*entry.dtype, shape);
      std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(copy->second.mutable_view().data()));
    }
    return copy->second.view();
  }

  weights::LinearWeights read_linear(const ModuleTensors& tensors, const Shape& shape) const {
    if (is_quantized(tensors)) {
      if (!quantization_) {
        throw Error(ErrorCode::Corrupt,
                    fmt::format("{} is quantized, but neither config.json nor quantize_config.json says how",
                                tensors.module()));
      }
      const LinearFormat* format = find_linear_format_of_method(quantization_->method);
      check(format != nullptr, "a quantization config of a method without a reader");
      weights::LinearWeights weights = format->read(tensors, *quantization_, shape);
      try {
        weights::validate(weights);
      } catch (const Error& error) {
        throw error.in(tensors.module());
      }
      return weights;
    }
    if (!tensors.contains("weight")) {
      throw Error(ErrorCode::NotFound, fmt::format("neither {} nor {} exists, nor another quantized form",
                                                   tensors.name("weight"), tensors.name("qweight")));
    }
    return weights::DenseWeights{Tensor::borrow(tensors.get_float("weight", shape))};
  }

  std::filesystem::path folder_;
  Json config_;
  std::optional<QuantizationConfig> quantization_;
  std::map<std::string, TensorFile> files_;
  std::map<std::string, Place, std::less<>> tensors_;
  mutable std::mutex realigned_mutex_;
  mutable std::map<std::string, Tensor> realigned_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_folder(const std::filesystem::path& folder) {
  return std::make_unique<FolderCheckpoint>(folder);
}

}  // namespace nibble::formats
