#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "models/block.h"
#include "models/config.h"

namespace nibble::verify {

/// Another reading of the file: what some outputs of a stage would be if it held something else. Weights themselves
/// are never changed, so a reading costs no second copy of a linear.
struct TextReading {
  static constexpr std::int64_t kEveryLayer = -1;

  std::int64_t layer = kEveryLayer;
  std::size_t stage_idx = 0;
  std::int64_t first_output = 0;    // of the stage's outputs, parts one after the other
  float factor = 1;                 // of the outputs, biases apart
  std::vector<float> bias;          // [num_outputs] or empty: what the factor leaves alone
  std::vector<std::int32_t> order;  // [num_outputs] or empty: output i is stored output order[i]
  std::int64_t num_outputs = 0;

  bool covers(std::int64_t layer_idx) const { return layer == kEveryLayer || layer == layer_idx; }
};

/// The largest output of a linear over a text; infinite where one is not a number.
struct LargestOutput {
  std::string module;
  float value = 0;
};

/// Losses of the text's next tokens, in nats, one each.
struct TextLosses {
  std::vector<float> stored;
  std::vector<std::vector<float>> readings;    // of each reading
  std::vector<LargestOutput> largest_outputs;  // of every linear as stored, in the order of the model
};

/// Takes a text through a model as stored and in other readings, block by block: in memory are one block and, for each
/// reading that has begun to differ, the residual stream [num_tokens, hidden_size]. One thread calls it.
class TextPass {
 public:
  /// Errors: OutOfMemory; whatever the loader reports.
  TextPass(const formats::Checkpoint& checkpoint, const models::ModelConfig& config, backend::Backend& backend,
           std::span<const std::int32_t> tokens);

  /// `on_block` is called after each block.
  TextLosses run(std::span<const TextReading> readings, const std::function<void()>& on_block);

 private:
  struct Stream {
    const TextReading* reading = nullptr;  // as stored: none
    Tensor hidden;                         // f32 [num_tokens, hidden_size]; empty: still that of the stored stream
  };

  backend::ForwardBatch batch() const;
  Tensor embed();
  void run_block(const models::DecoderBlock& block, std::int64_t layer_idx, std::span<Stream> streams,
                 TextLosses& losses);
  void run_stream(const models::DecoderBlock& block, const models::BlockContext& context, models::BlockState& state,
                  Matrix<const float> from, Stream& stream, std::int64_t layer_idx,
                  std::vector<LargestOutput>* largest);
  std::vector<float> next_token_losses(const Tensor& hidden, const Tensor& final_norm, const backend::Linear& lm_head);

  const formats::Checkpoint& checkpoint_;
  const models::ModelConfig& config_;
  backend::Backend& backend_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> query_start_;
  std::vector<std::int32_t> context_len_;
  std::vector<std::int32_t> kv_blocks_;
  std::vector<std::int64_t> slots_;
  std::unique_ptr<backend::Rope> rope_;
};

}  // namespace nibble::verify
