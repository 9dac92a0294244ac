#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace nibble::quantize {

/// How large numbers get, batch after batch: what a static scale must span. The result does not depend on threads.
class MagnitudeRange {
 public:
  /// `percentile`, 0 < percentile <= 100, of the magnitudes that the range covers. Below 100 a histogram with bins of
  /// 2^-8 of a number's size is kept (512 KB).
  explicit MagnitudeRange(double percentile = 100);

  void add(Matrix<const float> values, ThreadPool& pool);
  /// Upper edge of the bin that holds the percentile, never above the largest magnitude; infinity where a value was
  /// NaN or infinite, 0 where there were no values.
  float range() const;

 private:
  double percentile_;
  std::uint32_t largest_ = 0;         // as bits, which sort like magnitudes
  std::vector<std::int64_t> counts_;  // by the upper 16 bits of the magnitude; empty at 100
};

}  // namespace nibble::quantize
