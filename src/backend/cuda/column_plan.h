#pragma once

#include <cstdint>
#include <vector>

#include "weights/linear_weights.h"

namespace nibble::backend::cuda {

/// Which columns stand where in packed weights, so that no group of inputs begins or ends inside a segment of 32.
struct ColumnPlan {
  /// Column of each packed one, -1 for none; empty: the natural order, then none to the end of the last block.
  std::vector<std::int32_t> columns;
  std::int32_t num_blocks = 0;          // of 128 packed columns
  std::int32_t segments_per_group = 4;  // 1, 2 or 4: scales change at their multiples only
  /// Group of each run of segments_per_group segments, -1 for none.
  std::vector<std::int32_t> groups;
};

/// Natural order where groups allow it. Act-order sorts columns by group, and groups that are no multiple of 32 get
/// empty columns.
ColumnPlan plan_columns(const weights::GroupedIntWeights& weights);

/// Without groups.
ColumnPlan plan_columns(std::int64_t in_features);

}  // namespace nibble::backend::cuda
