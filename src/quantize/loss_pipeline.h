#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "quantize/calibration.h"
#include "quantize/journal_entry.h"
#include "quantize/loss_store.h"
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
  /// References outlive it. Errors: as LossStore, for --statistics.
  LossPipeline(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options,
               backend::Backend& backend, StageQuantizers& quantizers);

  /// Whether --statistics names a folder that holds them all: no walk is needed.
  bool has_statistics() const { return store_ && store_->is_complete(static_cast<std::int64_t>(plan_.blocks.size())); }
  /// Else, before the first block. `samples` may go afterwards; `block_inputs` is the walk's scratch file.
  void begin_walk(const CalibrationSamples& samples, const std::filesystem::path& block_inputs);
  /// The walk's, from the first block to the end loss.
  void forward();
  /// Save and restore what lies between blocks.
  LossWalk& walk() { return *walk_; }
  /// Blocks from last to first. Returns the entry without its tensors.
  JournalEntry quantize_block(std::int64_t block_idx, Output& output);

 private:
  std::vector<StageLossStatistics> statistics_of(const FloatBlock& block, std::int64_t block_idx);
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
  std::optional<LossStore> store_;
  std::optional<LossWalk> walk_;
};

}  // namespace nibble::quantize
