#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/float_block.h"
#include "quantize/grid.h"
#include "quantize/loss_statistics.h"
#include "weights/fp8.h"
#include "weights/linear_weights.h"

namespace nibble::quantize {

/// What the calibration tokens say about the input of one stage; its linears share it.
struct StageInputs {
  Tensor gram;            // f32 [in, in], Σ x x^T over the tokens, symmetric: GPTQ's Hessian up to a factor
  Tensor mean_magnitude;  // f32 [in], mean |x|
  std::int64_t num_tokens = 0;
  /// Calibration::Ranges: what |x| spans, and what the keys and values span that attention made this input of.
  float range = 0;
  float key_range = 0;
  float value_range = 0;
};

/// Where the groups of --desc-act come from.
enum class GroupIndex : std::uint8_t {
  Trivial,  // group of input k: k / group_size
  DescAct,  // groups of columns of similar importance, written as g_idx
};

/// What the error of a linear is measured by.
enum class Guidance : std::uint8_t {
  Inputs,   // the inputs' Gram matrix: the error of the linear's outputs
  EndLoss,  // the same, each token weighted by how much the end loss depends on it (GuidedQuant, arXiv 2505.07004)
};

/// How codes are chosen once the grids are known.
enum class Rounding : std::uint8_t { Nearest, Gptq };

/// How FP8 activations get their scales when the model runs.
enum class ActivationScheme : std::uint8_t { Dynamic, Static };  // per token or 128 inputs; fixed by calibration

/// Keys and values of a served FP8 model's cache.
enum class KvCacheScales : std::uint8_t { None, Calibrated };

struct Fp8Options {
  weights::Fp8Granularity granularity = weights::Fp8Granularity::PerChannel;
  ActivationScheme activations = ActivationScheme::Dynamic;
  KvCacheScales kv_cache_scales = KvCacheScales::None;
  /// Of the magnitudes that static scales span; 100: the largest. The rest is clipped.
  double percentile = 100;
};

/// What SqueezeLLM weighs a weight's error by.
enum class Sensitivity : std::uint8_t {
  Fisher,   // the diagonal of the end loss's Fisher information
  Hessian,  // E[x²], the layer's own error: no backward pass
};

struct SqueezeLlmOptions {
  Sensitivity sensitivity = Sensitivity::Fisher;
  double sparsity = 0.0045;  // share of the weights that is stored apart, exact; 0: dense only
};

/// What every method may read; a method names in `check` what it cannot do.
struct MethodOptions {
  GridFormat grid;
  std::int64_t group_size = 128;  // -1: one group a row
  GroupIndex group_index = GroupIndex::Trivial;
  double damp_percent = 0.01;             // of the mean diagonal, added to GPTQ's Hessian
  Rounding rounding = Rounding::Nearest;  // AWQ
  /// GPTQ, AWQ: the part of its inputs' drift from the float model's that a linear makes up for (quantize/drift.h); 0:
  /// none, and no second stream of activations.
  double drift_correction = 0;
  Guidance guidance = Guidance::Inputs;
  LossOptions loss;  // Calibration::Loss
  Fp8Options fp8;
  SqueezeLlmOptions squeezellm;

  /// Inputs that share a scale in a linear of `in_features`.
  std::int64_t group_size_of(std::int64_t in_features) const { return group_size == -1 ? in_features : group_size; }
};

/// What a method must see of the calibration data.
enum class Calibration : std::uint8_t {
  None,    // weights only
  Ranges,  // what each stage's inputs span, predecessors quantized
  Stages,  // each stage's inputs, predecessors quantized
  Block,   // the whole float block's first, to rescale it; then as Stages
  Loss,    // the end loss of the float model: blocks come last to first, each linear is quantized on its own
};

/// A quantization method at work on one model. One thread calls it, blocks in order, stages in order; both in reverse
/// for Calibration::Loss.
class Quantizer {
 public:
  virtual ~Quantizer() = default;

  /// Calibration::Block: may move scales inside the float block (fold_scale) before any of its linears is quantized.
  /// `inputs` [stages] are those of the float block.
  virtual void rescale(FloatBlock& block, std::span<const StageInputs> inputs, ThreadPool& pool) {
    static_cast<void>(block), static_cast<void>(inputs), static_cast<void>(pool);
  }

  /// The stage's linears, in order. `inputs` is empty for Calibration::None. Not called for Calibration::Loss.
  virtual std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                                       ThreadPool& pool) = 0;

  /// Calibration::Loss: what quantize_by_loss reads.
  virtual LossNeeds loss_needs() const { return {}; }
  /// Calibration::Loss: the stage's linears, in order. `statistics` are those of the float model.
  virtual std::vector<weights::LinearWeights> quantize_by_loss(std::span<const FloatLinear> linears,
                                                               const StageLossStatistics& statistics,
                                                               ThreadPool& pool) {
    static_cast<void>(linears), static_cast<void>(statistics), static_cast<void>(pool);
    throw Error(ErrorCode::Internal, "this method does not look at the end loss");
  }
};

/// What the linears of a method become.
enum class Makes : std::uint8_t { GroupedInt, Fp8, Codebook };

/// One row of the table in methods.cpp.
struct Method {
  std::string_view name;
  std::string_view summary;
  Makes makes;  // flags about grids and groups have no meaning for the others than GroupedInt
  Symmetry default_symmetry;
  Calibration (*calibration)(const MethodOptions& options);
  /// Errors: InvalidArgument naming the flag, for options without meaning in this method.
  void (*check_options)(const MethodOptions& options);
  std::unique_ptr<Quantizer> (*make)(const MethodOptions& options);
  /// The checkpoint format, as formats::CheckpointWriter::add_linear names it.
  std::string_view (*checkpoint_format)(const MethodOptions& options);
  /// Raised whenever the method's results change, so that no run is resumed by a program that would go on otherwise.
  std::int32_t version = 1;
};

std::span<const Method> methods();
/// Errors: InvalidArgument listing the known names.
const Method& find_method(std::string_view name);

std::unique_ptr<Quantizer> make_rtn(const MethodOptions& options);
std::unique_ptr<Quantizer> make_gptq(const MethodOptions& options);
std::unique_ptr<Quantizer> make_guided_gptq(const MethodOptions& options);
std::unique_ptr<Quantizer> make_awq(const MethodOptions& options);
std::unique_ptr<Quantizer> make_fp8(const MethodOptions& options);
std::unique_ptr<Quantizer> make_squeezellm(const MethodOptions& options);

}  // namespace nibble::quantize
