#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "models/block.h"
#include "quantize/activation_stream.h"
#include "quantize/calibration.h"
#include "quantize/float_block.h"
#include "quantize/quantizer.h"

/// A linear behind quantized ones sees inputs x that have drifted from the float model's x'. What it should put out is
/// W x' all the same, and where it adds to the residual stream, which has drifted from r' to r, W x' + r' - r:
///
///   ‖W X' + R' - R - Q X‖² = ‖(W' - Q) X‖² + what no Q changes
///   W' = W + (W D + E) H⁻¹,   D = Σ (x' - x) xᵀ,   E = Σ (r' - r) xᵀ,   H = Σ x xᵀ
///
/// So the weights are corrected first, and any method then rounds W' under H. The aim is GPTAQ's (Li et al. 2025, arXiv
/// 2504.02692), which works D into its column loop, for later columns only; W' without E is QEP's (Arai and Ichikawa
/// 2025, arXiv 2504.09629). What is fitted to few tokens fits them too well: only a part of the correction is applied,
/// and H is damped by as much as kDriftPriorTokens more tokens of white noise would add, which pulls W' towards W.
namespace nibble::quantize {

/// The sums above for one stage.
struct Drift {
  Tensor input;     // D f32 [in, in]
  Tensor residual;  // E f32 [outputs of the stage, in]; empty where the stage does not add to the residual stream
};

/// On the reference model 80 to 8000 were tried at 8192 tokens.
inline constexpr double kDriftPriorTokens = 800;

/// weight += strength · (weight D + E) (H + damping)⁻¹ for the linears of a stage, whose outputs follow one another in
/// E. Errors: Corrupt, as factorize.
void correct_drift(std::vector<FloatLinear>& linears, const StageInputs& inputs, const Drift& drift, double strength,
                   ThreadPool& pool);

/// What was best on the reference model.
inline constexpr double kBestDriftCorrection = 0.5;

/// The strength where the user names none: what was best on the reference model (docs/quality.md) for GPTQ at 4
/// bits, where it was measured; 0 for quick runs, whose time the second stream would double.
double default_drift_correction(const Method& method, const MethodOptions& options,
                                const CalibrationOptions& calibration);

/// The calibration tokens on their way through the float model, a stage at a time beside the quantized model's stream.
/// One thread calls it:
///
///   for each block:  enter(decoder)  { measure_drift(stream, s); advance(linears, s) }…
class FloatStream {
 public:
  FloatStream(std::unique_ptr<ActivationStream> stream, ThreadPool& pool) : stream_(std::move(stream)), pool_(pool) {}

  ActivationStream& stream() { return *stream_; }

  /// `decoder` has the norms of the float block and no linears.
  void enter(models::DecoderBlock decoder);
  /// Of the stage at which both streams stand.
  Drift measure_drift(const ActivationStream& quantized, std::size_t stage_idx) const;
  /// Applies the stage's float linears and goes to the next one, or out of the block.
  void advance(const std::vector<FloatLinear>& linears, std::size_t stage_idx);

 private:
  std::unique_ptr<ActivationStream> stream_;
  ThreadPool& pool_;
  std::optional<models::DecoderBlock> decoder_;
};

}  // namespace nibble::quantize
