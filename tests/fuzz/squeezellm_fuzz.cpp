#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "core/error.h"
#include "formats/squeezellm.h"
#include "fuzz/fuzzed_checkpoint.h"

using namespace nibble;

/// The input is a safetensors file with the tensors of a module "m" of two outputs and eight inputs at 4 bits, or 32 at
/// 3. What is read and holds up can be dequantized.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  try {
    const fuzz::FuzzedCheckpoint checkpoint({reinterpret_cast<const std::byte*>(input), size_bytes});
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
