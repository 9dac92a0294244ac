#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "models/decoder.h"
#include "weights/fp8.h"

namespace nibble::models {

struct LoadOptions {
  std::int64_t max_positions = 0;  // of the rotary tables; 0: config.json's max_position_embeddings
  /// Float linears of the blocks become FP8 on their way, a stage at a time; tables and lm_head stay.
  std::optional<weights::Fp8Granularity> quantize_to_fp8 = {};
  /// Threads that bring linears into canonical form while others are packed: worth their memory (2 GB) where packing
  /// leaves the CPUs idle. 0: one linear at a time.
  int read_ahead_threads = 0;
};

/// names → mapped views → canonical structs → packed linears, a stage at a time; the source pages of what was packed
/// are released as it goes. The embedding may borrow `checkpoint`, which must outlive the decoder.
/// Errors: NotFound / Corrupt / Unsupported with tensor and shapes.
std::unique_ptr<Decoder> load_decoder(const formats::Checkpoint& checkpoint, backend::Backend& backend,
                                      const LoadOptions& options = {});

/// The parts of load_decoder one by one, for callers that never hold a whole model. Errors: as there.
std::unique_ptr<backend::Embedding> load_embedding(const formats::Checkpoint& checkpoint, const ModelConfig& config,
                                                   backend::Backend& backend);
DecoderBlock load_block(const formats::Checkpoint& checkpoint, BlockSpec spec, backend::Backend& backend,
                        const LoadOptions& options);
Tensor load_final_norm(const formats::Checkpoint& checkpoint, const ModelConfig& config, backend::Backend& backend);
/// `embedding`, where the caller keeps one as long as the linear: a tied lm_head may share its table.
std::unique_ptr<backend::Linear> load_lm_head(const formats::Checkpoint& checkpoint, const ModelConfig& config,
                                              backend::Backend& backend, const backend::Embedding* embedding = nullptr);

/// `--load-format dummy`: a folder with only config.json as a checkpoint whose weights are made from `seed` (quantized
/// where config.json has a quantization_config of awq, gptq or squeezellm), so that large shapes need no large files.
/// Tokenizer files are used where they exist; else a byte-level tokenizer of 256 tokens stands in.
std::unique_ptr<formats::Checkpoint> make_dummy_checkpoint(const std::filesystem::path& folder, std::uint64_t seed);

}  // namespace nibble::models
