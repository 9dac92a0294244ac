#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quantize/calibration.h"
#include "quantize/float_block.h"
#include "quantize/quantizer.h"

/// Whether a calibration set tells enough: warnings, never errors.
namespace nibble::quantize {

/// Warns where there are fewer tokens than four for each input of the widest linear, from which its inputs' Gram matrix
/// is mostly noise, and where the text has few different tokens: less than one in a hundred of as many as it could
/// have.
void warn_of_poor_samples(const CalibrationSamples& samples, std::int64_t widest_input, std::int64_t vocab_size);

/// Counts input channels that the calibration text hardly reaches: whose mean magnitude is below a thousandth of the
/// stage's median. Their weights are quantized blindly, and other text may need them.
class ActivationCoverage {
 public:
  void add(const std::vector<FloatLinear>& linears, const StageInputs& inputs);
  std::int64_t num_channels() const { return num_channels_; }
  std::int64_t num_unreached() const { return num_unreached_; }
  /// Warns where that is more than one channel in a hundred, and names the stage with the most.
  void report() const;

 private:
  std::int64_t num_channels_ = 0;
  std::int64_t num_unreached_ = 0;
  std::int64_t worst_unreached_ = 0;
  std::int64_t worst_channels_ = 0;
  std::string worst_linear_;
};

}  // namespace nibble::quantize
