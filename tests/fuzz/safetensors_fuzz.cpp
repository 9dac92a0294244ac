#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "core/error.h"
#include "formats/safetensors.h"

/// Whatever a file says, its tensors lie inside it, disjoint and in order.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(input), size_bytes);
  try {
    nibble::formats::refuse_lfs_pointer(file);
    std::size_t total = 0;
    for (const auto& [name, entry] : nibble::formats::parse_safetensors(file)) {
      if (entry.begin > entry.end || entry.end > size_bytes) std::abort();
      total += entry.end - entry.begin;
    }
    if (total > size_bytes) std::abort();
  } catch (const nibble::Error&) {
    return 0;  // refused, as most inputs should be
  }
  return 0;
}
