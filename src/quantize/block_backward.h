#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/host_ops.h"
#include "models/block.h"
#include "quantize/calibration_batch.h"
#include "quantize/float_block.h"
#include "quantize/loss_sums.h"

namespace nibble::quantize {

/// What a backward pass through a block needs besides the block.
struct BackwardContext {
  backend::Backend& backend;  // computes in f32 on the host
  const backend::HostRope& rope;
  std::int64_t batch_tokens;  // of the largest batch
  LossNeeds needs;
  FisherForm fisher_form = FisherForm::Token;
};

/// The float block with its linears on BLAS.
models::DecoderBlock make_float_decoder(const FloatBlock& block, backend::Backend& backend);

/// Backpropagation through one float block, batch after batch, summing up the statistics of its linears. One thread
/// calls it.
class BlockBackward {
 public:
  /// `block` and what `context` refers to outlive it.
  BlockBackward(const FloatBlock& block, const BackwardContext& context);

  /// Recomputes the block's activations from its input [tokens, hidden_size], then takes `gradient`, ∂L/∂output
  /// [tokens, hidden_size], to ∂L/∂input.
  void run(const CalibrationBatch& batch, backend::KvCache& cache, Matrix<const float> input, Matrix<float> gradient);

  /// The sums of stage `stage_idx` over all batches; once.
  StageLossStatistics take(std::size_t stage_idx);

 private:
  void recompute(const CalibrationBatch& batch, backend::KvCache& cache, Matrix<const float> input);
  /// ∂L/∂(stage input) of the batch, from ∂L/∂(stage output).
  Matrix<float> propagate_linears(std::size_t stage_idx, Matrix<const float> d_output);
  std::span<const float> norm_weight(models::Prepare which) const;

  const FloatBlock& block_;
  BackwardContext context_;
  models::DecoderBlock decoder_;
  models::BlockState state_;
  std::vector<Tensor> norm_inputs_;  // per stage f32 [tokens, hidden_size]; empty where no norm prepares it
  std::vector<Tensor> d_inputs_;     // per stage f32 [tokens, in]
  std::vector<Tensor> d_outputs_;    // per stage f32 [tokens, out]; empty where the residual stream's serves
  std::vector<LossSums> sums_;       // per stage
};

}  // namespace nibble::quantize
