#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "models/block.h"
#include "models/config.h"
#include "models/kv_scales.h"

namespace nibble::models {

/// A whole model on one backend: embedding, blocks, final norm, lm_head. One thread calls it.
class Decoder {
 public:
  struct Parts {
    ModelConfig config;
    std::unique_ptr<backend::Embedding> embedding;
    std::unique_ptr<backend::Rope> rope;
    std::vector<DecoderBlock> blocks;
    Tensor final_norm;
    std::unique_ptr<backend::Linear> lm_head;
  };
  Decoder(backend::Backend& backend, Parts parts);

  const ModelConfig& config() const { return parts_.config; }
  backend::Backend& backend() const { return *backend_; }
  std::int64_t weight_bytes() const;  // packed, embedding and lm_head included
  /// KV layout of all layers at `dtype`; `scales` are those of an 8-bit one, empty: 1.0.
  std::vector<backend::KvSpec> kv_specs(DType dtype, std::span<const KvScales> scales = {}) const;

  /// Allocates the activations of steps up to these sizes. Call before `forward`; again to grow.
  void reserve(std::int64_t max_tokens, std::int64_t max_logit_rows);
  std::int64_t max_tokens() const { return max_tokens_; }
  std::int64_t max_logit_rows() const { return max_logit_rows_; }

  /// One forward pass up to the last block; writes the batch's keys and values.
  void forward(const backend::ForwardBatch& batch, backend::KvCache& cache);
  /// Logits [rows.size(), vocab_size] of tokens of the last forward pass, by index in its batch; at most
  /// max_logit_rows. Valid until the next call. Wider requests come in tiles.
  backend::Activation& logits(std::span<const std::int32_t> rows);

 private:
  /// Blocks whose linears want the same input formats share activations.
  struct FormatGroup {
    std::vector<backend::ActivationFormat> input_formats;  // one a stage
    BlockState state;
  };

  backend::Backend* backend_;
  Parts parts_;
  std::vector<FormatGroup> groups_;
  std::vector<std::size_t> group_of_block_;
  backend::Activation hidden_;        // [max_tokens, hidden], lent to a group's state while its blocks run
  backend::Activation final_hidden_;  // [max_logit_rows, hidden]
  backend::Activation final_input_;   // [max_logit_rows, hidden] in lm_head's format
  backend::Activation logits_;        // [max_logit_rows, vocab]
  std::int64_t max_tokens_ = 0;
  std::int64_t max_logit_rows_ = 0;
};

}  // namespace nibble::models
