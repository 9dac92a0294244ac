#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "quantize/pipeline.h"
#include "quantize/report.h"

/// `nibble quantize --judge`: a checkpoint is made, and its report says what that cost.
namespace nibble::workflow {

/// On what the checkpoint is judged: as much text as costs about a third of quantizing by GPTQ, unless it is said.
struct JudgeOptions {
  std::vector<std::filesystem::path> text_files;  // joined, as eval does; none: windows that no sample was drawn from
  std::int64_t num_windows = 0;  // 0: an eighth of the calibration tokens, at least 2048; without calibration 2048
  std::int64_t window_len = 0;   // tokens; 0: 2048 or the model's context, held-out windows are as long as samples
  std::optional<double> max_kl;  // nats; a larger KL rejects the checkpoint, which stays where it is
};

struct QuantizeResult {
  quantize::PipelineReport quantized;
  std::optional<quantize::Judgment> judgment;  // where it was judged
};

/// Quantizes, then judges where `judge` is given: the float model and the files just written go through
/// engine::LayerOuterEngine side by side, one block in memory at a time, activations in f32, and the report in the
/// output gets the result. The text is chosen before anything is quantized. A run stopped while it judges is resumed as
/// any other, and judges again. Errors: InvalidArgument for a text that is missing or too short, naming the flag; as
/// run_pipeline.
QuantizeResult quantize_and_judge(const quantize::PipelineOptions& options, const std::optional<JudgeOptions>& judge);

}  // namespace nibble::workflow
