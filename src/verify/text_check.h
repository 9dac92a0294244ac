#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "models/config.h"
#include "verify/finding.h"
#include "verify/layer_scales.h"

namespace nibble::verify {

/// A short text taken through the model, as stored and in readings that the weights alone cannot decide: the outermost
/// layers at half and at twice their scales, q and k with their rotary pairs in another order. A reading under which
/// the text is clearly more likely is what the file should have held.
struct TextCheckResult {
  std::vector<Finding> findings;
  std::int64_t num_tokens = 0;
  std::optional<double> loss;  // mean of the text as stored, nats a token
  std::string skipped;         // why it was not run; else empty
};

struct TextCheckOptions {
  const LayerScales& sizes;
  std::string scale_suffix;  // of the tensors that findings name
  std::string code_suffix;
  int num_threads = 0;
  std::function<void()> on_block = [] {};
};

/// Errors: OutOfMemory; whatever the loader reports.
TextCheckResult check_text(const formats::Checkpoint& checkpoint, const models::ModelConfig& config,
                           const TextCheckOptions& options);

}  // namespace nibble::verify
