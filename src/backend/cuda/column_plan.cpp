#include "backend/cuda/column_plan.h"

#include <algorithm>
#include <numeric>

#include "backend/cuda/packed_layout.h"

namespace nibble::backend::cuda {
namespace {

std::int32_t group_of(const weights::GroupedIntWeights& w, std::int32_t column) {
  if (w.has_g_idx()) return w.g_idx.span<std::int32_t>()[static_cast<std::size_t>(column)];
  return static_cast<std::int32_t>((w.first_group_offset + column) / w.group_size);
}

/// Whether every run of `span` columns lies in one group.
bool fits(const weights::GroupedIntWeights& w, const std::vector<std::int32_t>& order, std::size_t span) {
  for (std::size_t first = 0; first < order.size(); first += span) {
    const std::int32_t group = group_of(w, order[first]);
    const std::size_t end = std::min(first + span, order.size());
    for (std::size_t i = first; i < end; ++i) {
      if (group_of(w, order[i]) != group) return false;
    }
  }
  return true;
}

/// `order` with each group filled up to whole segments.
std::vector<std::int32_t> fill_groups(const weights::GroupedIntWeights& w, const std::vector<std::int32_t>& order) {
  std::vector<std::int32_t> filled;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && group_of(w, order[i]) != group_of(w, order[i - 1])) {
      while (filled.size() % kSegmentCols != 0) filled.push_back(-1);
    }
    filled.push_back(order[i]);
  }
  return filled;
}

}  // namespace

ColumnPlan plan_columns(const weights::GroupedIntWeights& weights) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(weights.in_features));
  std::iota(order.begin(), order.end(), 0);
  if (weights.has_g_idx()) {
    std::ranges::stable_sort(order, {}, [&](std::int32_t column) { return group_of(weights, column); });
  }
  bool is_natural = std::ranges::is_sorted(order);
  ColumnPlan plan;
  while (plan.segments_per_group > 1 &&
         !fits(weights, order, static_cast<std::size_t>(plan.segments_per_group * kSegmentCols))) {
    plan.segments_per_group /= 2;
  }
  if (!fits(weights, order, kSegmentCols)) {
    order = fill_groups(weights, order);
    is_natural = false;
  }
  plan.num_blocks = (static_cast<std::int32_t>(order.size()) + kBlockCols - 1) / kBlockCols;
  order.resize(static_cast<std::size_t>(plan.num_blocks) * kBlockCols, -1);
  const auto span = static_cast<std::size_t>(plan.segments_per_group * kSegmentCols);
  for (std::size_t first = 0; first < order.size(); first += span) {
    plan.groups.push_back(order[first] < 0 ? -1 : group_of(weights, order[first]));
  }
  if (!is_natural) plan.columns = std::move(order);
  return plan;
}

ColumnPlan plan_columns(std::int64_t in_features) {
  ColumnPlan plan;
  plan.num_blocks = static_cast<std::int32_t>((in_features + kBlockCols - 1) / kBlockCols);
  return plan;
}

}  // namespace nibble::backend::cuda
