#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weights/linear_weights.h"

namespace nibble::verify {

/// Which rows (outputs) or columns (inputs) of a linear are compared with those of another; whole blocks of eight.
struct UnitChoice {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> columns;
};

/// How the codes of integer groups fill their grid.
struct GridStats {
  std::int32_t bits = 4;
  double mean_offset = 0;     // mean of code - zero point, in codes: trained weights have a mean near zero
  bool is_symmetric = false;  // all zero points are the same
  std::optional<std::int16_t> uniform_zero;  // that one
  /// Groups none of whose codes reach the end of the grid, as the scale would have made them; and the same count
  /// with the columns dealt to groups at random, which is what wrong groups look like.
  std::int64_t num_counted = 0;
  std::int64_t unreached = 0;
  std::int64_t unreached_at_random = 0;
  /// Variance over groups of (mean code - zero point) as stored, and with the zero points of every eight outputs in
  /// AWQ's order; 0 where that makes no sense.
  double zero_variance = 0;
  double zero_variance_reordered = 0;
  /// Correlation, over the groups of each row, of mean code and zero point: both follow what the group holds. Columns
  /// dealt to other groups lose it. Nothing where zero points hardly differ, or groups are too few.
  std::optional<double> zero_correlation;
};

/// What verify wants to know of one linear; one pass over its dequantized rows.
struct ModuleStats {
  double log2_rms = 0;                           // of the weights, times the norm that precedes them
  std::vector<float> row_energies;               // [out] sum of squares, times the norm
  std::vector<float> column_energies;            // [in] sum of squares
  float largest = 0;                             // |w|
  std::vector<float> rows;                       // [choice.rows, in]
  std::vector<float> columns;                    // [choice.columns, out]
  std::optional<GridStats> grid;                 // of GroupedIntWeights
  std::optional<std::int64_t> skewed_table_row;  // of CodebookWeights: a row whose mean is far from zero
};

/// `norm` [in], or empty: weights of the norm whose output the linear reads.
ModuleStats compute_stats(const weights::LinearWeights& weights, std::span<const float> norm, const UnitChoice& choice);

}  // namespace nibble::verify
