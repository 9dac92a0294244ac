#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "formats/linear_format.h"
#include "formats/quantization_config.h"
#include "formats/quantized_modules.h"
#include "fuzz/fuzzed_checkpoint.h"

namespace {

using namespace nibble;

/// What holds up can be dequantized, and what can be written again reads back.
void read_module(const formats::Checkpoint& checkpoint, const formats::QuantizationConfig& config, const Shape& shape) {
  const formats::LinearFormat* format = formats::find_linear_format_of_method(config.method);
  if (format == nullptr) std::abort();
  const weights::LinearWeights linear = format->read({checkpoint, "m"}, config, shape);
  weights::validate(linear);
  if (weights::dequantize(linear).shape() != shape) std::abort();
  format->write(linear);
}

template <class Action>
void allow_refusal(Action&& action) {
  try {
    action();
  } catch (const Error&) {
    return;  // a refusal in words is what most inputs should get
  }
}

}  // namespace

/// The input is a quantization_config in one line, then a safetensors file with the tensors of a module "m". The config
/// chooses the reader: GPTQ, AWQ, compressed-tensors, FP8 or SqueezeLLM.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(input), size_bytes);
  const auto line_end = std::ranges::find(bytes, std::byte{'\n'});
  if (line_end == bytes.end()) return 0;
  const auto length = static_cast<std::size_t>(line_end - bytes.begin());
  allow_refusal([&] {
    const Json json = parse_json({reinterpret_cast<const char*>(input), length}, "config");
    const formats::QuantizationConfig config = formats::parse_quantization_config(json);
    const fuzz::FuzzedCheckpoint checkpoint(bytes.subspan(length + 1), config);
    allow_refusal([&] { formats::quantized_modules(checkpoint); });
    for (const Shape& shape : {Shape{32, 32}, Shape{8, 64}, Shape{256, 128}}) {
      allow_refusal([&] { read_module(checkpoint, config, shape); });
    }
  });
  return 0;
}
