#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/file.h"
#include "core/scratch_file.h"
#include "models/block.h"
#include "quantize/calibration_batch.h"
#include "quantize/quantizer.h"

namespace nibble::quantize {

/// What is summed up of a stage's inputs.
struct InputStatistics {
  enum class Kind : std::uint8_t {
    Gram,   // gram and mean_magnitude
    Range,  // range, key_range and value_range
    None,   // the stream only goes along with another
  };
  Kind kind = Kind::Gram;
  double percentile = 100;  // of the magnitudes that a range covers
};

enum class Residence : std::uint8_t { Memory, ScratchFile };

/// Where a stream keeps what it holds of all tokens.
struct StreamStorage {
  Residence hidden = Residence::Memory;  // the residual stream
  Residence inputs = Residence::Memory;  // the inputs of the stage at work
  std::filesystem::path folder;          // of scratch files
};

/// The calibration tokens on their way through the model, one stage at a time, in chunks of whole samples. Between
/// stages it holds the residual stream and the stage's inputs of all tokens, in memory or in scratch files; everything
/// else is one chunk's.
///
///   for each block:  [observe(block)]  enter(block)  { quantize stage s; advance(block, s) }…  leave(block)
///
/// One thread calls it.
class ActivationStream {
 public:
  /// `backend` computes in f32 on the host. All references outlive the stream.
  ActivationStream(backend::Backend& backend, const backend::Rope& rope, const CalibrationSamples& samples,
                   const InputStatistics& wanted = {});

  std::int64_t num_tokens() const { return num_tokens_; }
  /// Before `embed`. Results do not depend on it.
  void set_storage(const StreamStorage& storage);
  /// The residual streams between two blocks, one after another, durable in a file, and back. Errors: Corrupt for a
  /// file of another size.
  static void save(std::span<const ActivationStream* const> streams, const std::filesystem::path& path);
  static void restore(std::span<ActivationStream* const> streams, const std::filesystem::path& path);
  void embed(const backend::Embedding& embedding, std::int64_t hidden_size);

  /// Runs the whole block, whose linears are set, and forgets the result: the inputs of each stage.
  std::vector<StageInputs> observe(const models::DecoderBlock& block);

  /// Prepares the first stage. Returns its inputs.
  StageInputs enter(const models::DecoderBlock& block);
  /// Applies the stage's linears, then prepares the next one. Returns that one's inputs.
  StageInputs advance(const models::DecoderBlock& block, std::size_t stage_idx);
  /// Applies the last stage's linears; the residual stream becomes the block's output.
  void leave(const models::DecoderBlock& block);

  /// Sums over the tokens, x the input of the stage at which this stream stands, r its residual stream, x' and r' those
  /// of the same token in `reference`, which stands at the same stage: f32 Σ (x' - x) xᵀ [in, in] and Σ (r' - r) xᵀ
  /// [hidden_size, in].
  Tensor input_drift_from(const ActivationStream& reference) const;
  Tensor residual_drift_from(const ActivationStream& reference) const;

 private:
  /// What lies in scratch files has no values here between two uses.
  struct Chunk {
    CalibrationBatch batch;
    std::int64_t first_token = 0;
    backend::Activation hidden;  // [tokens, hidden_size]
    backend::Activation input;   // [tokens, width of the current stage]
  };
  class Statistics;

  /// The working state and a KV cache for blocks of this shape.
  void reserve(const models::BlockSpec& spec);
  std::int64_t state_bytes() const;
  void save_to(AtomicFile& file) const;
  /// From `offset` of the file.
  void restore_from(const MappedFile& file, std::int64_t offset);
  enum class Rows : std::uint8_t { Input, Hidden };
  std::int64_t width_of(Rows rows) const { return rows == Rows::Input ? input_width_ : hidden_size_; }
  /// A chunk's [tokens, width], in `buffer` if they lie in a file.
  Matrix<const float> rows_of(const Chunk& chunk, Rows rows, Tensor& buffer) const;
  /// Σ (y' - y) xᵀ with y these rows.
  Tensor drift_from(const ActivationStream& reference, Rows rows) const;
  /// Calls body(chunk, context) for each chunk in order, its batch prepared.
  template <class Body>
  void for_each_chunk(const Body& body);
  /// The chunk's residual stream → the working state's, and back.
  void borrow_hidden(Chunk& chunk);
  void return_hidden(Chunk& chunk);
  /// chunk.input → the working state's input of the stage, and back; buffers circulate through spare_inputs_.
  void put_input(Chunk& chunk, std::size_t stage_idx);
  void take_input(Chunk& chunk, std::size_t stage_idx);

  backend::Backend& backend_;
  const backend::Rope& rope_;
  InputStatistics wanted_;
  std::vector<Chunk> chunks_;
  std::int64_t num_tokens_ = 0;
  std::int64_t chunk_tokens_ = 0;
  std::unique_ptr<backend::KvCache> cache_;  // of one layer, for one chunk
  models::BlockState state_;                 // the chunk at work
  std::vector<backend::Activation> spare_inputs_;
  std::optional<ScratchFile> hidden_file_;  // f32 [num_tokens, hidden_size]
  std::optional<ScratchFile> input_file_;   // f32, tokens of the widest stage's width apart
  std::int64_t hidden_size_ = 0;
  std::int64_t widest_input_ = 0;
  std::int64_t input_width_ = 0;  // of the stage at which the stream stands
};

}  // namespace nibble::quantize
