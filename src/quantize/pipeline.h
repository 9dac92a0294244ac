#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "quantize/calibration.h"
#include "quantize/journal.h"
#include "quantize/layer_choice.h"
#include "quantize/layer_report.h"
#include "quantize/quantizer.h"

/// `nibble quantize`: the float model in, a quantized checkpoint out, one decoder block in memory at a time.
namespace nibble::quantize {

struct PipelineOptions {
  std::filesystem::path model;
  std::filesystem::path output;  // must not hold a checkpoint yet
  std::string method;
  std::string format;  // as formats/registry.cpp names it; empty: the method's own
  MethodOptions method_options;
  std::vector<std::string> skip_layers;        // patterns of linears that stay float (layer_choice.h)
  std::vector<LayerOverride> layer_overrides;  // what single linears have of their own
  CalibrationOptions calibration;
  std::filesystem::path statistics;    // folder of the end loss's statistics, to keep and to find them; empty: none
  std::vector<std::string> arguments;  // the flags as typed, for the report: whoever repeats them gets the same bytes
  std::string device = "auto";         // computes attention and norms of the calibration passes: auto, cpu, reference
  Resume resume = Resume::No;
  std::int64_t max_memory = 0;  // bytes; activations beyond it go to scratch files. 0: what is free
  int num_threads = 0;          // 0: every available CPU; the result is the same for any number
};

/// What became of one block. Errors are relative errors of the linears' outputs (output_error), averaged over the
/// linears; 0 without calibration.
struct BlockReport {
  std::string name;         // "model.layers.0"
  double rtn_error = 0;     // plain round to nearest at the same bits
  double method_error = 0;  // what was written
};

struct PipelineReport {
  std::vector<BlockReport> blocks;
  std::vector<LayerReport> layers;  // in the order of the blocks
  std::int64_t input_bytes = 0;
  std::int64_t output_bytes = 0;
  std::string checkpoint_format;  // "gptq", "gptq_v2", "awq"
  double seconds = 0;
};

/// Checks everything that can be checked first, then calibrates, quantizes and writes. `judge` (may be empty) runs once
/// the checkpoint is complete and this run has let go of its memory, while its folder is still locked: a run that was
/// stopped there comes to it again when it is resumed, without quantizing again.
/// Errors: InvalidArgument and Unsupported naming flag, layer and the values that work; whatever files and `judge`
/// report.
PipelineReport run_pipeline(const PipelineOptions& options, const std::function<void()>& judge);
inline PipelineReport run_pipeline(const PipelineOptions& options) {
  return run_pipeline(options, {});
}

}  // namespace nibble::quantize
