#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "quantize/calibration.h"
#include "quantize/journal_entry.h"
#include "quantize/loss_walk.h"
#include "quantize/output.h"
#include "quantize/pipeline.h"
#include "quantize/plan.h"
#include "quantize/quantizer.h"
#include "quantize/stage_quantizers.h"

namespace nibble::quantize {

/// The pipeline of Calibration::Loss: statistics of the float model's end loss, blocks last to first; each block's
/// linears are quantized as soon as its statistics are there.
class LossPipeline {
 public:
  /// References but `samples` outlive it. `block_inputs` is the walk's scratch file.
  LossPipeline(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options,
               backend::Backend& backend, StageQuantizers& quantizers, const CalibrationSamples& samples,
               const std::filesystem::path& block_inputs);

  void forward();
  /// Save and restore what lies between blocks.
  LossWalk& walk() { return walk_; }
  /// Blocks from last to first. Returns the entry without its tensors.
  JournalEntry quantize_block(std::int64_t block_idx, Output& output);

 private:
  /// Errors: Corrupt, naming the linear.
  static void expect_finite(const StageLossStatistics& statistics, const std::vector<FloatLinear>& linears);
  std::vector<weights::LinearWeights> quantize_stage(const std::vector<FloatLinear>& linears,
                                                     const StageLossStatistics& statistics, const StageChoice& choice);
  /// Round to nearest, for comparison.
  Tensor rounded(const Tensor& weight, const MethodOptions& method) const;
  /// Relative, weighted by the end loss.
  double error_of(const Tensor& weight, const Tensor& quantized, const LossStatistics& statistics) const;

  const formats::Checkpoint& checkpoint_;
  const Plan& plan_;
  const PipelineOptions& options_;
  backend::Backend& backend_;
  StageQuantizers& quantizers_;
  LossWalk walk_;
};

}  // namespace nibble::quantize
