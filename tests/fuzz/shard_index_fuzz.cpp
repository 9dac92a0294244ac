#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "core/error.h"
#include "core/file.h"
#include "formats/shard_index.h"

/// Whatever an index says, its files lie in its own folder.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  try {
    const auto index = nibble::formats::parse_shard_index({reinterpret_cast<const std::byte*>(input), size_bytes});
    if (index.empty()) std::abort();
    for (const auto& [tensor, file] : index) {
      if (!nibble::is_plain_file_name(file)) std::abort();
    }
  } catch (const nibble::Error&) {
    return 0;  // refused, as most inputs should be
  }
  return 0;
}
