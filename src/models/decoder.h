#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "models/block.h"
#include "models/config.h"

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
  /// KV layout of all layers at `dtype`.
  std::vector<backend::KvSpec> kv_specs(DType dtype) const;

  /// Allocates the activations of steps up to these sizes. Call before `forward`; again to grow.
  void reserve(std::int64_t max_tokens, std::int64_t max_logit_rows);

  /// One forward pass; logits [batch.logit_rows.size(), vocab_size] stay valid until the next call.
  backend::Activation& forward(const backend::ForwardBatch& batch, backend::KvCache& cache);

 private:
  backend::Backend* backend_;
  Parts parts_;
  BlockState state_;
  backend::Activation final_hidden_;  // [max_logit_rows, hidden]
  backend::Activation final_input_;   // [max_logit_rows, hidden] in lm_head's format
  backend::Activation logits_;        // [max_logit_rows, vocab]
  std::int64_t max_tokens_ = 0;
  std::int64_t max_logit_rows_ = 0;
};

}  // namespace nibble::models
