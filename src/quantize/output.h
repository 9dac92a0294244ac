#pragma once

#include <set>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "quantize/journal.h"
#include "quantize/pipeline.h"
#include "quantize/plan.h"
#include "quantize/report.h"

namespace nibble::quantize {

/// The quantized checkpoint as it is written: linears of the finished stages, then all that stays float. It lies in the
/// journal's scratch folder until `finish`, and begins with what the journal says is written.
class Output {
 public:
  Output(const formats::Checkpoint& source, const Plan& plan, const PipelineOptions& options, const Journal& journal);

  /// `choice` says how the stage was quantized.
  void add_stage(const std::vector<FloatLinear>& linears, const std::vector<weights::LinearWeights>& quantized,
                 const StageChoice& choice);
  /// k_scale and v_scale beside `o_proj`, the linear that reads attention.
  void add_kv_scales(const FloatLinear& o_proj, const StageInputs& inputs);
  /// The block's norms, whether scales were folded into them or not.
  void add_norms(const FloatBlock& block);
  /// A block that an earlier run has written.
  void skip(const models::BlockSpec& spec);
  /// Everything else in f16: embedding, final norm, lm_head.
  void add_rest();
  /// Makes what was added durable, and enters it: tensors and schemes since the last call.
  void sync(JournalEntry& entry);
  /// Names the files: shards, the tokenizer's files and the report, config.json last.
  void finish(const Report& report);
  std::int64_t total_bytes() const { return writer_.total_bytes(); }

 private:
  void add_half(const std::string& name, TensorView tensor);
  formats::QuantizationConfig make_quantization() const;
  formats::QuantizationConfig make_method_quantization() const;
  formats::QuantizationConfig grouped_int_config() const;
  formats::QuantizationConfig fp8_config() const;
  formats::QuantizationConfig codebook_config() const;
  std::vector<std::string> skipped_modules() const;
  Json make_config(const formats::QuantizationConfig& quantization) const;

  const formats::Checkpoint& source_;
  const Plan& plan_;
  const PipelineOptions& options_;
  std::string_view format_;
  std::vector<formats::ModuleScheme> schemes_;  // of the linears written so far
  std::size_t num_synced_schemes_ = 0;
  formats::CheckpointWriter writer_;
  std::set<std::string> written_;  // tensors of the source that are dealt with
};

}  // namespace nibble::quantize
