#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "core/error.h"
#include "formats/torch_file.h"

/// Whatever an archive says, its tensors lie inside it.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  try {
    const auto header = nibble::formats::parse_torch_file({reinterpret_cast<const std::byte*>(input), size_bytes});
    for (const auto& [name, entry] : header) {
      if (entry.begin > entry.end || entry.end > size_bytes) std::abort();
    }
  } catch (const nibble::Error&) {
    return 0;  // refused, as most inputs should be
  }
  return 0;
}
