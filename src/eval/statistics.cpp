#include "eval/statistics.h"

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "core/error.h"

namespace nibble::eval {

double mean(std::span<const double> samples) {
  if (samples.empty()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (const double sample : samples) sum += sample;
  return sum / static_cast<double>(samples.size());
}

double standard_error(std::span<const double> samples) {
  if (samples.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  const double center = mean(samples);
  double squares = 0;
  for (const double sample : samples) squares += (sample - center) * (sample - center);
  const auto count = static_cast<double>(samples.size());
  return std::sqrt(squares / (count - 1) / count);
}

double paired_standard_error(std::span<const double> a, std::span<const double> b) {
  check(a.size() == b.size(), "paired samples come from the same items");
  std::vector<double> differences(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) differences[i] = a[i] - b[i];
  return standard_error(differences);
}

}  // namespace nibble::eval
