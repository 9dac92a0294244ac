#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/temporary_folder.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

/// A folder with exactly these tensors and this quantization_config, opened.
class RawCheckpoint {
 public:
  explicit RawCheckpoint(Json quantization_config) : quantization_config_(std::move(quantization_config)) {}

  RawCheckpoint& add(const std::string& name, Tensor tensor) {
    tensors_.emplace_back(name, std::move(tensor));
    return *this;
  }
  template <class T>
  RawCheckpoint& add(const std::string& name, const std::vector<T>& values, Shape shape) {
    return add(name, Tensor::copy_of({values.data(), *dtype_of<T>, shape}));
  }
  const Checkpoint& open() {
    const std::filesystem::path folder = *folder_ / "m";
    CheckpointWriter writer(folder);
    for (const auto& [name, tensor] : tensors_) writer.add(name, tensor);
    writer.finish({Json{{"model_type", "llama"}, {"quantization_config", quantization_config_}}, {}});
    checkpoint_ = Checkpoint::open(folder);
    return *checkpoint_;
  }

 private:
  std::unique_ptr<TemporaryFolder> folder_ = std::make_unique<TemporaryFolder>();
  Json quantization_config_;
  std::vector<std::pair<std::string, Tensor>> tensors_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

inline std::vector<float> dequantized(const weights::LinearWeights& weights) {
  const Tensor dense = weights::dequantize(weights);
  const auto values = dense.span<float>();
  return {values.begin(), values.end()};
}

inline std::vector<std::uint32_t> words_of(const Tensor& tensor) {
  const auto words = tensor.span<std::int32_t>();
  return {words.begin(), words.end()};
}

}  // namespace nibble::formats
