#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/error.h"
#include "formats/gguf.h"
#include "formats/gguf_config.h"
#include "formats/gguf_tokenizer.h"

namespace {

template <class Action>
void allow_refusal(Action&& action) {
  try {
    action();
  } catch (const nibble::Error&) {
    return;  // a refusal in words is what hostile input should get
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  using namespace nibble::formats;
  allow_refusal([&] {
    const GgufFile file = GgufFile::parse({reinterpret_cast<const std::byte*>(input), size_bytes});
    for (const auto& [name, tensor] : file.tensors()) {
      std::vector<float> values(static_cast<std::size_t>(tensor.shape.num_elements()));
      dequantize_gguf(tensor.type, tensor.bytes, values);
    }
    allow_refusal([&] { make_config(file); });
    allow_refusal([&] { make_generation_config(file); });
    allow_refusal([&] { make_tokenizer_json(file); });
    allow_refusal([&] { make_tokenizer_config(file); });
    allow_refusal([&] {
      for (const auto& [name, source] : hugging_face_tensors(file)) {
        for (std::int64_t row = 0; row < source.tensor->shape[0]; ++row) {
          if (source.file_row(row) < 0 || source.file_row(row) >= source.tensor->shape[0]) __builtin_trap();
        }
      }
    });
  });
  return 0;
}
