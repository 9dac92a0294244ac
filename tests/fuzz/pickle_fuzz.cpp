#include <cstddef>
#include <cstdint>
#include <span>

#include "core/error.h"
#include "formats/pickle.h"

/// Whatever a pickle says, it is read as dicts of tensors or refused.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  try {
    nibble::formats::read_state_dict({reinterpret_cast<const std::byte*>(input), size_bytes});
  } catch (const nibble::Error&) {
    return 0;  // refused, as most inputs should be
  }
  return 0;
}
