#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "core/error.h"
#include "formats/safetensors.h"
#include "formats/squeezellm.h"

namespace {

using namespace nibble;

/// The tensors of one safetensors file, copied so that they are aligned.
class FuzzedCheckpoint final : public formats::Checkpoint {
 public:
  explicit FuzzedCheckpoint(std::span<const std::byte> file) {
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
  std::vector<std::string> tensor_names() const override { return {}; }
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

}  // namespace

/// The input is a safetensors file with the tensors of a module "m" of two outputs and eight inputs at 4 bits, or 32 at
/// 3. What is read and holds up can be dequantized.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  try {
    const FuzzedCheckpoint checkpoint({reinterpret_cast<const std::byte*>(input), size_bytes});
    for (const std::int64_t in_features : {8, 32}) {
      try {
        const weights::LinearWeights linear = formats::read_squeezellm({checkpoint, "m"}, {}, {2, in_features});
        weights::validate(linear);
        const Tensor values = weights::dequantize(linear);
        for (const float value : values.span<float>()) {
          if (std::isnan(value)) std::abort();
        }
      } catch (const Error&) {
        continue;  // refused, as most inputs should be
      }
    }
  } catch (const Error&) {
    return 0;  // no safetensors file
  }
  return 0;
}
