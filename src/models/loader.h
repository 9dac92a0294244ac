#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "models/decoder.h"

namespace nibble::models {

/// names → mapped views → canonical structs → packed linears, a stage at a time; the source pages of what was packed
/// are released as it goes. The embedding may borrow `checkpoint`, which must outlive the decoder.
/// `max_positions` sizes the rotary tables; 0 takes config.json's max_position_embeddings.
/// Errors: NotFound / Corrupt / Unsupported with tensor and shapes.
std::unique_ptr<Decoder> load_decoder(const formats::Checkpoint& checkpoint, backend::Backend& backend,
                                      std::int64_t max_positions = 0);

/// `--load-format dummy`: a folder with only config.json as a checkpoint whose weights are made from `seed` (quantized
/// where config.json has a quantization_config of awq, gptq or squeezellm), so that large shapes need no large files.
/// Tokenizer files are used where they exist; else a byte-level tokenizer of 256 tokens stands in.
std::unique_ptr<formats::Checkpoint> make_dummy_checkpoint(const std::filesystem::path& folder, std::uint64_t seed);

}  // namespace nibble::models
