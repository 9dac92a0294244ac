#include "quantize/magnitude_range.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace nibble::quantize {
namespace {

constexpr int kBinShift = 15;
constexpr std::uint32_t kInfinity = 0x7f800000u;

std::uint32_t magnitude_bits(float value) {
  return std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
}

/// Of one thread.
struct Tally {
  std::uint32_t largest = 0;
  std::vector<std::int64_t> counts;
};

}  // namespace

MagnitudeRange::MagnitudeRange(double percentile) : percentile_(percentile) {
  check(percentile > 0 && percentile <= 100, "a percentile is above 0 and at most 100");
  if (percentile < 100) counts_.resize(std::size_t{1} << (31 - kBinShift));
}

void MagnitudeRange::add(Matrix<const float> values, ThreadPool& pool) {
  std::vector<Tally> tallies(static_cast<std::size_t>(pool.num_threads()));
  for (Tally& tally : tallies) tally.counts.resize(counts_.size());
  pool.run(values.rows, [&](std::int64_t row, int thread) {
    Tally& tally = tallies[static_cast<std::size_t>(thread)];
    std::uint32_t largest = 0;
    for (const float value : values.row_span(row)) largest = std::max(largest, magnitude_bits(value));
    tally.largest = std::max(tally.largest, largest);
    if (tally.counts.empty()) return;
    for (const float value : values.row_span(row)) ++tally.counts[magnitude_bits(value) >> kBinShift];
  });
  for (const Tally& tally : tallies) {
    largest_ = std::max(largest_, tally.largest);
    for (std::size_t bin = 0; bin < counts_.size(); ++bin) counts_[bin] += tally.counts[bin];
  }
}

float MagnitudeRange::range() const {
  if (largest_ >= kInfinity) return std::numeric_limits<float>::infinity();
  std::int64_t total = 0;
  for (const std::int64_t count : counts_) total += count;
  const auto wanted = static_cast<std::int64_t>(std::ceil(static_cast<double>(total) * percentile_ / 100));
  std::int64_t covered = 0;
  for (std::size_t bin = 0; bin < counts_.size(); ++bin) {
    covered += counts_[bin];
    if (covered < wanted) continue;
    const auto edge = (static_cast<std::uint32_t>(bin) << kBinShift) | ((1u << kBinShift) - 1);
    return std::bit_cast<float>(std::min(edge, largest_));
  }
  return std::bit_cast<float>(largest_);
}

}  // namespace nibble::quantize
