#pragma once

#include <cstdint>

namespace nibble::quantize {

/// Running sums over the sorted points of a row: entry i is over the first i points, [num_points + 1], and then at
/// least kPartitionGroup - 1 copies of the last entry. Σw rises strictly.
struct PointSums {
  const double* w = nullptr;    // Σ weight
  const double* wx = nullptr;   // Σ weight · value
  const double* wxx = nullptr;  // Σ weight · value²
  std::int64_t num_points = 0;
};
inline constexpr std::int64_t kPartitionGroup = 8;

/// For every prefix of the points the cut into intervals of least  Σ error + penalty · (number of intervals), where an
/// interval's error is its weighted squared distance to its mean, Σwx² - (Σwx)² / Σw.
///
/// least  [num_points + 1]   that minimum less the prefix's Σwx²
/// split  [num_points + 1]   first point of the last interval of that cut
///
/// The best split moves monotonically with the prefix (the error obeys the quadrangle inequality), so rows of prefixes
/// are searched by divide and conquer: O(num_points log(points an interval)). The bits are the same on every machine.
void partition_with_penalty(const PointSums& sums, double penalty, double* least, std::int32_t* split);

}  // namespace nibble::quantize
