#include "verify/interleaving.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace nibble::verify {

double alignment(const UnitVectors& a, const UnitVectors& b) {
  check(a.width == b.width && a.values.size() == b.values.size(), "verify: units of two linears differ in number");
  double sum = 0;
  for (std::int64_t unit = 0; unit < a.num_units(); ++unit) {
    const float* x = a.values.data() + unit * a.width;
    const float* y = b.values.data() + unit * b.width;
    double product = 0;
    double x_squared = 0;
    double y_squared = 0;
    for (std::int64_t i = 0; i < a.width; ++i) {
      product += static_cast<double>(x[i]) * y[i];
      x_squared += static_cast<double>(x[i]) * x[i];
      y_squared += static_cast<double>(y[i]) * y[i];
    }
    if (x_squared > 0 && y_squared > 0) sum += product * product / (x_squared * y_squared);
  }
  return a.num_units() > 0 ? sum / static_cast<double>(a.num_units()) * static_cast<double>(a.width) : 0;
}

std::vector<float> reordered(const UnitVectors& vectors, InterleavedAlong along, Reading reading) {
  std::vector<float> result(vectors.values.begin(), vectors.values.end());
  // A code read at place i belongs to kAwqOrder[i] of its block, or the reverse.
  const auto target = [&](std::int64_t i) {
    return reading == Reading::AwqAsPlain ? to_awq_order(i) : from_awq_order(i);
  };
  const std::int64_t width = vectors.width;
  for (std::int64_t unit = 0; unit < vectors.num_units(); ++unit) {
    const float* from = vectors.values.data() + unit * width;
    if (along == InterleavedAlong::Units) {
      std::copy(from, from + width, result.begin() + target(unit) * width);
    } else if (along == InterleavedAlong::Width) {
      for (std::int64_t i = 0; i < width; ++i) result[static_cast<std::size_t>(unit * width + target(i))] = from[i];
    }
  }
  return result;
}

}  // namespace nibble::verify
