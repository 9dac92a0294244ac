#include <cmath>
#include <numbers>

#include "models/config.h"

namespace nibble::models {
namespace {

/// Llama 3's scaling: long wavelengths are slowed by `factor`, short ones kept, those between interpolated
/// (transformers, modeling_rope_utils: _compute_llama3_parameters).
double scale_llama3(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  if (wavelength < original / scaling.high_freq_factor) return frequency;
  if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth =
      (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const ModelConfig& config) {
  std::vector<float> inv_freq(static_cast<std::size_t>(config.head_dim / 2));
  for (std::size_t j = 0; j < inv_freq.size(); ++j) {
    double frequency =
        1.0 / std::pow(config.rope_theta, static_cast<double>(2 * j) / static_cast<double>(config.head_dim));
    if (config.rope_scaling) {
      frequency = config.rope_scaling->type == "llama3" ? scale_llama3(frequency, *config.rope_scaling)
                                                        : frequency / config.rope_scaling->factor;
    }
    inv_freq[j] = static_cast<float>(frequency);
  }
  return inv_freq;
}

}  // namespace nibble::models
