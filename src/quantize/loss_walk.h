#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/host_ops.h"
#include "formats/checkpoint.h"
#include "quantize/block_backward.h"
#include "quantize/block_inputs.h"
#include "quantize/calibration.h"
#include "quantize/loss_statistics.h"
#include "quantize/plan.h"

namespace nibble::quantize {

/// The float model's loss over the calibration tokens, and its gradient on the way back through the blocks: once
/// forward, saving what goes into each block, then last block to first, recomputing one block's activations at a time.
/// In memory are one block, the residual stream of all tokens and one batch's activations.
///
///   forward()  { backward(b) for b = num_blocks - 1 … 0 }
///
/// What block inputs and gradient hold in between can be kept, and another walk goes on from there with `restore`.
///
/// One thread calls it.
class LossWalk {
 public:
  /// `backend` computes in f32 on the host. `block_inputs` is the scratch file, tokens × hidden_size × 4 bytes a block.
  /// References outlive the walk.
  LossWalk(const formats::Checkpoint& checkpoint, const Plan& plan, backend::Backend& backend,
           const CalibrationSamples& samples, const LossOptions& options, const LossNeeds& needs,
           const std::filesystem::path& block_inputs);

  /// Shows its progress. Returns the mean loss of a labelled token, in nats.
  /// Errors: Corrupt where logits are not finite; whatever the checkpoint reports.
  double forward();

  /// The gradient where `forward` or the last `backward` left it, into a file; durable, and so are the block inputs.
  void save(const std::filesystem::path& gradient);
  /// Instead of `forward`, with the block inputs of a walk over the same tokens. Errors: Corrupt naming the file.
  void restore(const std::filesystem::path& gradient);

  /// The statistics of the stages of block `block_idx`, whose float form is `block`.
  std::vector<StageLossStatistics> backward(const FloatBlock& block, std::int64_t block_idx);

 private:
  void embed();
  void forward_block(const FloatBlock& block, std::int64_t block_idx);
  /// hidden_ becomes ∂L/∂hidden.
  double backward_head();
  std::vector<std::int32_t> next_tokens(const CalibrationBatch& batch) const;

  const formats::Checkpoint& checkpoint_;
  const Plan& plan_;
  backend::Backend& backend_;
  backend::HostRope rope_;
  LossOptions options_;
  LossNeeds needs_;
  std::vector<CalibrationBatch> batches_;
  std::vector<Tensor> hidden_;  // per batch f32 [tokens, hidden_size]: residual stream, then its gradient
  BlockInputs block_inputs_;
};

}  // namespace nibble::quantize
