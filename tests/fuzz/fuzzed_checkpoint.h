#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/safetensors.h"

namespace nibble::fuzz {

/// The tensors of one safetensors file, copied so that they are aligned.
class FuzzedCheckpoint final : public formats::Checkpoint {
 public:
  explicit FuzzedCheckpoint(std::span<const std::byte> file,
                            std::optional<formats::QuantizationConfig> quantization = std::nullopt)
      : quantization_(std::move(quantization)) {
    for (const auto& [name, entry] : formats::parse_safetensors(file)) {
      if (!entry.dtype || entry.begin == entry.end) continue;
      tensors_[name] = Tensor::empty(*entry.dtype, Shape(entry.sizes));
      std::copy(file.begin() + static_cast<std::ptrdiff_t>(entry.begin),
                file.begin() + static_cast<std::ptrdiff_t>(entry.end),
                static_cast<std::byte*>(tensors_[name].mutable_view().data()));
    }
  }

  const std::filesystem::path& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const std::optional<formats::QuantizationConfig>& quantization() const override { return quantization_; }
  std::optional<std::string> side_file(std::string_view) const override { return std::nullopt; }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  bool contains(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  TensorView tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(ErrorCode::NotFound, std::string(name));
    return found->second.view();
  }
  weights::LinearWeights linear(std::string_view, const Shape&) const override { return weights::DenseWeights{}; }
  Tensor bias(std::string_view, std::int64_t) const override { return {}; }
  void drop_pages(std::string_view) const override {}
  void release(std::string_view) const override {}
  std::int64_t size_bytes() const override { return 0; }

 private:
  std::filesystem::path path_;
  Json config_;
  std::optional<formats::QuantizationConfig> quantization_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace nibble::fuzz
