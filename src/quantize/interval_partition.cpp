#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quantize/interval_partition.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include <algorithm>

#include "quantize/interval_partition.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::quantize {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Groups of eight splits or prefixes on every target, and no fused multiply-add: so the bits are the same everywhere.
using F64 = hn::CappedTag<double, kPartitionGroup>;
using V64 = hn::Vec<F64>;
inline constexpr int kParts = static_cast<int>(kPartitionGroup / static_cast<std::int64_t>(hn::MaxLanes(F64())));
inline constexpr int kLanes = static_cast<int>(kPartitionGroup) / kParts;

class Partition {
 public:
  Partition(const PointSums& sums, double penalty, double* least, std::int32_t* split)
      : sums_(sums), penalty_(penalty), least_(least), split_(split) {}

  void run() {
    least_[0] = 0;
    split_[0] = 0;
    std::int64_t block = kPartitionGroup;
    for (std::int64_t first = 1; first <= sums_.num_points;) {
      const std::int64_t last = std::min(first + block, sums_.num_points + 1) - 1;
      if (!fill_block(first, last)) {
        block = std::max<std::int64_t>(1, (last - first + 1) / 2);
        continue;
      }
      first = last + 1;
      block = std::min(2 * block, kMaxBlock);
    }
  }

 private:
  static constexpr std::int64_t kMaxBlock = 256;

  /// Prefixes [first, last] from splits before `first`; false where a split among them might be better.
  bool fill_block(std::int64_t first, std::int64_t last) {
    const std::int32_t low = split_[first - 1];
    const auto high = static_cast<std::int32_t>(first - 1);
    const std::int32_t split = solve_prefix(last, low, high);
    // A later split costs at least what its prefix and one more interval do, and longer prefixes cost no less.
    const double bound = least_[first - 1] + sums_.wxx[first - 1] + penalty_;
    if (last > first && least_[last] + sums_.wxx[last] > bound) return false;
    fill_range(first, last - 1, low, split);
    return true;
  }

  /// Prefixes [first, last] from splits [low, high], which hold the best of each.
  void fill_range(std::int64_t first, std::int64_t last, std::int32_t low, std::int32_t high) {
    if (last - first < kPartitionGroup) {
      if (first <= last) solve_group(first, last, low, high);
      return;
    }
    const std::int64_t middle = (first + last) / 2;
    const std::int32_t split = solve_prefix(middle, low, high);
    fill_range(first, middle - 1, low, split);
    fill_range(middle + 1, last, split, high);
  }

  double value(double w, double wx, std::int32_t split) const {
    const double interval_wx = wx - sums_.wx[split];
    return least_[split] - interval_wx * interval_wx / (w - sums_.w[split]);
  }

  /// One prefix, eight splits at a time. The middle one is a good guess, and to see that others are no better needs no
  /// division.
  std::int32_t solve_prefix(std::int64_t prefix, std::int32_t low, std::int32_t high) {
    const F64 d;
    const double w = sums_.w[prefix];
    const double wx = sums_.wx[prefix];
    std::int32_t best = low + (high - low) / 2;
    double best_value = value(w, wx, best);
    const auto try_one = [&](std::int32_t s) {
      const double candidate = value(w, wx, s);
      if (candidate < best_value) {
        best_value = candidate;
        best = s;
      }
    };
    std::int32_t s = low;
    for (; s + kPartitionGroup <= high + 1; s += kPartitionGroup) {
      bool may_be_better = false;
      for (int p = 0; p < kParts; ++p) {
        const int at = s + p * kLanes;
        const V64 interval_w = hn::Sub(hn::Set(d, w), hn::LoadU(d, sums_.w + at));
        const V64 interval_wx = hn::Sub(hn::Set(d, wx), hn::LoadU(d, sums_.wx + at));
        const V64 room = hn::Sub(hn::LoadU(d, least_ + at), hn::Set(d, best_value));
        may_be_better |= !hn::AllFalse(d, hn::Lt(hn::Mul(room, interval_w), hn::Mul(interval_wx, interval_wx)));
      }
      if (!may_be_better) continue;
      for (std::int32_t i = 0; i < kPartitionGroup; ++i) try_one(s + i);
    }
    for (; s <= high; ++s) try_one(s);
    least_[prefix] = best_value + penalty_;
    split_[prefix] = best;
    return best;
  }

  /// Up to eight prefixes side by side, every split from `low` to `high` for each.
  void solve_group(std::int64_t first, std::int64_t last, std::int32_t low, std::int32_t high) {
    const F64 d;
    V64 w[kParts];
    V64 wx[kParts];
    V64 best_value[kParts];
    V64 best[kParts];
    for (int p = 0; p < kParts; ++p) {
      w[p] = hn::LoadU(d, sums_.w + first + p * kLanes);
      wx[p] = hn::LoadU(d, sums_.wx + first + p * kLanes);
      best_value[p] = hn::Inf(d);
      best[p] = hn::Set(d, low);
    }
    for (std::int32_t s = low; s <= high; ++s) {
      const V64 split_w = hn::Set(d, sums_.w[s]);
      const V64 split_wx = hn::Set(d, sums_.wx[s]);
      const V64 split_least = hn::Set(d, least_[s]);
      for (int p = 0; p < kParts; ++p) {
        const V64 interval_wx = hn::Sub(wx[p], split_wx);
        const V64 candidate = hn::Sub(split_least, hn::Div(hn::Mul(interval_wx, interval_wx), hn::Sub(w[p], split_w)));
        const auto better = hn::Lt(candidate, best_value[p]);
        best_value[p] = hn::IfThenElse(better, candidate, best_value[p]);
        best[p] = hn::IfThenElse(better, hn::Set(d, s), best[p]);
      }
    }
    HWY_ALIGN double values[kPartitionGroup];
    HWY_ALIGN double splits[kPartitionGroup];
    for (int p = 0; p < kParts; ++p) {
      hn::Store(hn::Add(best_value[p], hn::Set(d, penalty_)), d, values + p * kLanes);
      hn::Store(best[p], d, splits + p * kLanes);
    }
    for (std::int64_t i = first; i <= last; ++i) {
      least_[i] = values[i - first];
      split_[i] = static_cast<std::int32_t>(splits[i - first]);
    }
  }

  PointSums sums_;
  double penalty_;
  double* least_;
  std::int32_t* split_;
};

void partition_with_penalty(const PointSums& sums, double penalty, double* least, std::int32_t* split) {
  Partition(sums, penalty, least, split).run();
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::quantize
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::quantize {

HWY_EXPORT(partition_with_penalty);

void partition_with_penalty(const PointSums& sums, double penalty, double* least, std::int32_t* split) {
  HWY_DYNAMIC_DISPATCH(partition_with_penalty)(sums, penalty, least, split);
}

}  // namespace nibble::quantize
#endif  // HWY_ONCE
