#include "quantize/coverage.h"

#include <algorithm>
#include <cstddef>
#include <set>

#include "core/log.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kTokensPerInput = 4;
constexpr std::int64_t kRarity = 100;       // one in so many
constexpr float kReachedMagnitude = 1e-3f;  // of the median

}  // namespace

void warn_of_poor_samples(const CalibrationSamples& samples, std::int64_t widest_input, std::int64_t vocab_size) {
  const auto num_tokens = static_cast<std::int64_t>(samples.tokens.size());
  if (num_tokens < kTokensPerInput * widest_input) {
    log::warning("{} calibration tokens are few for linears of {} inputs; 128 to 512 samples of 512 tokens are usual",
                 num_tokens, widest_input);
  }
  const std::set<std::int32_t> different(samples.tokens.begin(), samples.tokens.end());
  const auto num_different = static_cast<std::int64_t>(different.size());
  if (num_different * kRarity < std::min(vocab_size, num_tokens)) {
    log::warning(
        "the calibration text has only {} different tokens of a vocabulary of {}: is it like what the model will "
        "be used for?",
        num_different, vocab_size);
  }
}

void ActivationCoverage::add(const std::vector<FloatLinear>& linears, const StageInputs& inputs) {
  if (inputs.mean_magnitude.is_empty()) return;
  const auto magnitudes = inputs.mean_magnitude.span<float>();
  std::vector<float> sorted(magnitudes.begin(), magnitudes.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const float least = kReachedMagnitude * *middle;
  // Not below: a stage whose inputs are mostly zero has a median of zero.
  const std::int64_t unreached =
      std::ranges::count_if(magnitudes, [&](float magnitude) { return magnitude == 0 || magnitude < least; });
  const auto channels = static_cast<std::int64_t>(magnitudes.size());
  num_channels_ += channels;
  num_unreached_ += unreached;
  if (unreached * std::max<std::int64_t>(1, worst_channels_) <= worst_unreached_ * channels) return;
  worst_unreached_ = unreached;
  worst_channels_ = channels;
  worst_linear_ = linears.front().name;
}

void ActivationCoverage::report() const {
  if (num_unreached_ * kRarity <= num_channels_) return;
  log::warning(
      "the calibration text hardly reaches {} of {} input channels, most of them in {} ({} of {}); text of other "
      "kinds would tell more about their weights",
      num_unreached_, num_channels_, worst_linear_, worst_unreached_, worst_channels_);
}

}  // namespace nibble::quantize
