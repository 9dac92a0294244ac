#pragma once

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "models/decoder.h"

namespace nibble::models {

enum class LoadFormat : std::uint8_t {
  Checkpoint,  // the files' weights
  Dummy,       // weights made from a seed; the folder needs only config.json
};

struct LoadOptions {
  LoadFormat format = LoadFormat::Checkpoint;
  std::uint64_t seed = 0;  // Dummy
};

/// names → mapped views → canonical structs → packed linears, a stage at a time; the source pages of what was packed
/// are released as it goes. The embedding may borrow `checkpoint`, which must outlive the decoder.
/// Errors: NotFound / Corrupt / Unsupported with tensor and shapes.
std::unique_ptr<Decoder> load_decoder(const formats::Checkpoint& checkpoint, backend::Backend& backend,
                                      const LoadOptions& options = {});

/// Folder with only config.json → the same interface, weights made from `seed` (quantized where config.json has a
/// quantization_config), so that large shapes need no large files.
std::unique_ptr<formats::Checkpoint> make_dummy_checkpoint(const std::filesystem::path& folder, std::uint64_t seed);

}  // namespace nibble::models
