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

  /// Allocates the activations of steps up to these sizes. Call before `step`; again to grow.
  void reserve(std::int64_t max_tokens, std::int64_t max_logit_rows);
  std::int64_t max_tokens() const { return max_tokens_; }
  std::int64_t max_logit_rows() const { return max_logit_rows_; }

  /// Has decode steps on this cache recorded, now, for every batch size up to what was reserved and max_sequences;
  /// does nothing on a backend that records nothing. Returns how many sizes. Holds until `reserve`; the cache outlives
  /// it. Errors: OutOfMemory.
  std::size_t capture(backend::KvCache& cache, std::int64_t max_sequences, std::int64_t max_blocks_per_sequence);

  /// One step: the forward pass, which writes the batch's keys and values, and the logits of its first
  /// `num_logit_rows` logit rows, at most max_logit_rows. Valid until the next call.
  backend::Activation& step(const backend::ForwardBatch& batch, backend::KvCache& cache, std::int64_t num_logit_rows);
  /// Logits [count, vocab_size] of batch.logit_rows[first, first + count), at most max_logit_rows, of the batch of the
  /// last step. Valid until the next call.
  backend::Activation& logits(const backend::ForwardBatch& batch, std::int64_t first, std::int64_t count);

 private:
  /// Blocks whose linears want the same input formats share activations.
  struct FormatGroup {
    std::vector<backend::ActivationFormat> input_formats;  // one a stage
    BlockState state;
  };

  void forward(const backend::ForwardBatch& batch, backend::KvCache& cache);

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
  std::unique_ptr<backend::StepCapture> capture_;
  const backend::KvCache* captured_cache_ = nullptr;
};

}  // namespace nibble::models
