#include "verify/module_stats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "core/error.h"
#include "verify/interleaving.h"

namespace nibble::verify {
namespace {

using weights::CodebookWeights;
using weights::GroupedIntWeights;

constexpr std::int64_t kRowTile = 32;
/// Rows that the grid's filling is counted on; a few thousand groups suffice.
constexpr std::int64_t kMaxGridRows = 512;
/// A row's mean, in units of its own root mean square. Trained rows stay below 0.3.
constexpr double kSkewedMean = 0.8;

std::vector<std::int32_t> groups_of(const GroupedIntWeights& w) {
  std::vector<std::int32_t> groups(static_cast<std::size_t>(w.in_features));
  for (std::size_t i = 0; i < groups.size(); ++i) {
    groups[i] = w.has_g_idx()
                    ? w.g_idx.span<std::int32_t>()[i]
                    : static_cast<std::int32_t>((w.first_group_offset + static_cast<std::int64_t>(i)) / w.group_size);
  }
  return groups;
}

/// Groups of one row that reach the end of their grid.
class Reach {
 public:
  Reach(const GroupedIntWeights& w, bool is_symmetric)
      : largest_(static_cast<int>((1u << w.bits) - 1)),
        is_symmetric_(is_symmetric),
        low_(static_cast<std::size_t>(w.num_groups())),
        high_(low_.size()) {}

  std::int64_t count_unreached(std::span<const std::uint8_t> codes, std::span<const std::int32_t> groups,
                               const std::int16_t* zeros) {
    std::ranges::fill(low_, largest_);
    std::ranges::fill(high_, 0);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const auto g = static_cast<std::size_t>(groups[i]);
      low_[g] = std::min(low_[g], static_cast<int>(codes[i]));
      high_[g] = std::max(high_[g], static_cast<int>(codes[i]));
    }
    std::int64_t unreached = 0;
    for (std::size_t g = 0; g < low_.size(); ++g) unreached += reaches(g, zeros[g]) ? 0 : 1;
    return unreached;
  }

 private:
  bool reaches(std::size_t g, int zero) const {
    if (low_[g] == zero && high_[g] == zero) return true;  // weights of zero, which any scale serves
    if (is_symmetric_) return std::max(high_[g] - zero, zero - low_[g]) >= largest_ / 2;
    return high_[g] - low_[g] >= largest_;
  }

  int largest_;
  bool is_symmetric_;
  std::vector<int> low_;
  std::vector<int> high_;
};

double variance(std::span<const double> values) {
  if (values.empty()) return 0;
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return sum / count;
}

/// Mean code of each (row, group), [out, groups].
std::vector<double> mean_codes(const GroupedIntWeights& w, std::span<const std::int32_t> groups, double& mean_offset) {
  const auto num_groups = static_cast<std::size_t>(w.num_groups());
  std::vector<double> means(static_cast<std::size_t>(w.out_features) * num_groups);
  std::vector<std::int64_t> sizes(num_groups);
  for (const std::int32_t group : groups) ++sizes[static_cast<std::size_t>(group)];
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.in_features));
  std::vector<std::int64_t> sums(num_groups);
  double offset = 0;
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    weights::unpack_codes(w.codes.matrix<std::uint8_t>().row_span(o), w.bits, codes);
    std::ranges::fill(sums, 0);
    for (std::size_t i = 0; i < codes.size(); ++i) sums[static_cast<std::size_t>(groups[i])] += codes[i];
    for (std::size_t g = 0; g < num_groups; ++g) {
      const double mean = sizes[g] > 0 ? static_cast<double>(sums[g]) / static_cast<double>(sizes[g]) : 0;
      means[static_cast<std::size_t>(o) * num_groups + g] = mean;
      if (sizes[g] == 0) continue;
      offset += static_cast<double>(sums[g]) - static_cast<double>(sizes[g]) * w.zeros.matrix<std::int16_t>().row(o)[g];
    }
  }
  mean_offset = offset / static_cast<double>(w.out_features * w.in_features);
  return means;
}

/// Variance of mean code - zero point; zero points of row o come from row order(o).
template <class Order>
double zero_variance(const GroupedIntWeights& w, std::span<const double> means, Order&& order) {
  const std::int64_t num_groups = w.num_groups();
  std::vector<double> differences(means.size());
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    const std::int16_t* zeros = w.zeros.matrix<std::int16_t>().row(order(o));
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const auto at = static_cast<std::size_t>(o * num_groups + g);
      differences[at] = means[at] - zeros[g];
    }
  }
  return variance(differences);
}

/// Pairs of (row, group) that a correlation needs, and the part of them whose zero point lies off its row's mean.
constexpr std::int64_t kMinCorrelated = 256;
constexpr double kMinZeroSpread = 0.02;

/// Correlation of mean codes and zero points, each less its row's mean.
std::optional<double> zero_correlation(const GroupedIntWeights& w, std::span<const double> means) {
  const std::int64_t num_groups = w.num_groups();
  if (num_groups < 2 || w.out_features * num_groups < kMinCorrelated) return std::nullopt;
  double products = 0;
  double code_squares = 0;
  double zero_squares = 0;
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    const std::int16_t* zeros = w.zeros.matrix<std::int16_t>().row(o);
    const std::span<const double> codes = means.subspan(static_cast<std::size_t>(o * num_groups), w.num_groups());
    const double mean_code = std::accumulate(codes.begin(), codes.end(), 0.0) / static_cast<double>(num_groups);
    const double mean_zero = std::accumulate(zeros, zeros + num_groups, 0.0) / static_cast<double>(num_groups);
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const double code = codes[static_cast<std::size_t>(g)] - mean_code;
      const double zero = zeros[g] - mean_zero;
      products += code * zero;
      code_squares += code * code;
      zero_squares += zero * zero;
    }
  }
  if (code_squares == 0 || zero_squares < kMinZeroSpread * static_cast<double>(w.out_features * num_groups)) {
    return std::nullopt;
  }
  return products / std::sqrt(code_squares * zero_squares);
}

GridStats grid_stats(const GroupedIntWeights& w) {
  GridStats stats;
  stats.bits = w.bits;
  const auto zeros = w.zeros.span<std::int16_t>();
  stats.is_symmetric = std::ranges::all_of(zeros, [&](std::int16_t zero) { return zero == zeros.front(); });
  if (stats.is_symmetric) stats.uniform_zero = zeros.front();
  const std::vector<std::int32_t> groups = groups_of(w);
  const std::vector<double> means = mean_codes(w, groups, stats.mean_offset);
  if (!stats.is_symmetric && w.bits == 4 && w.out_features % kInterleaved == 0) {
    stats.zero_variance = zero_variance(w, means, [](std::int64_t o) { return o; });
    const double there = zero_variance(w, means, [](std::int64_t o) { return to_awq_order(o); });
    const double back = zero_variance(w, means, [](std::int64_t o) { return from_awq_order(o); });
    stats.zero_variance_reordered = std::min(there, back);
  }

  if (w.num_groups() < 2) return stats;  // nothing to deal columns to
  if (!stats.is_symmetric) stats.zero_correlation = zero_correlation(w, means);

  std::vector<std::int32_t> at_random = groups;
  std::mt19937 random(1);
  std::shuffle(at_random.begin(), at_random.end(), random);
  Reach reach(w, stats.is_symmetric);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.in_features));
  const std::int64_t step = std::max<std::int64_t>(1, w.out_features / kMaxGridRows);
  for (std::int64_t o = 0; o < w.out_features; o += step) {
    weights::unpack_codes(w.codes.matrix<std::uint8_t>().row_span(o), w.bits, codes);
    const std::int16_t* row_zeros = w.zeros.matrix<std::int16_t>().row(o);
    stats.num_counted += w.num_groups();
    stats.unreached += reach.count_unreached(codes, groups, row_zeros);
    stats.unreached_at_random += reach.count_unreached(codes, at_random, row_zeros);
  }
  return stats;
}

/// Accumulates rows of a linear.
class RowPass {
 public:
  RowPass(const weights::LinearWeights& weights, std::span<const float> norm, const UnitChoice& choice)
      : weights_(weights), norm_(norm), choice_(choice) {
    const auto out = static_cast<std::size_t>(weights::out_features(weights));
    const auto in = static_cast<std::size_t>(weights::in_features(weights));
    check(norm.empty() || norm.size() == in, "verify: a norm of another width");
    stats_.row_energies.resize(out);
    stats_.column_energies.resize(in);
    stats_.rows.resize(choice.rows.size() * in);
    stats_.columns.resize(choice.columns.size() * out);
  }

  ModuleStats run() {
    const std::int64_t out = weights::out_features(weights_);
    const std::int64_t in = weights::in_features(weights_);
    std::vector<float> tile(static_cast<std::size_t>(kRowTile * in));
    for (std::int64_t first = 0; first < out; first += kRowTile) {
      const std::int64_t count = std::min(kRowTile, out - first);
      const Matrix<float> rows{tile.data(), count, in, in};
      weights::dequantize_rows(weights_, first, rows);
      for (std::int64_t r = 0; r < count; ++r) add_row(first + r, rows.row_span(r));
    }
    copy_rows();
    double energy = 0;
    for (const float row : stats_.row_energies) energy += row;
    stats_.log2_rms = 0.5 * std::log2(std::max(energy / static_cast<double>(out * in), 1e-60));
    return std::move(stats_);
  }

 private:
  void add_row(std::int64_t o, std::span<const float> row) {
    float energy = 0;
    double sum = 0;
    double squares = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const float square = row[i] * row[i];
      const float scaled = norm_.empty() ? 1.0f : norm_[i] * norm_[i];
      energy += square * scaled;
      stats_.column_energies[i] += square;
      stats_.largest = std::max(stats_.largest, std::abs(row[i]));
      sum += row[i];
      squares += square;
    }
    stats_.row_energies[static_cast<std::size_t>(o)] = energy;
    const auto count = static_cast<double>(row.size());
    const double rms = std::sqrt(squares / count);
    if (std::holds_alternative<CodebookWeights>(weights_) && std::abs(sum / count) > kSkewedMean * rms && rms > 0) {
      stats_.skewed_table_row = stats_.skewed_table_row.value_or(o);
    }
    const std::size_t out = stats_.row_energies.size();
    for (std::size_t c = 0; c < choice_.columns.size(); ++c) {
      stats_.columns[c * out + static_cast<std::size_t>(o)] = row[static_cast<std::size_t>(choice_.columns[c])];
    }
  }

  void copy_rows() {
    const std::int64_t in = weights::in_features(weights_);
    for (std::size_t r = 0; r < choice_.rows.size(); ++r) {
      weights::dequantize_rows(weights_, choice_.rows[r],
                               {stats_.rows.data() + r * static_cast<std::size_t>(in), 1, in, in});
    }
  }

  const weights::LinearWeights& weights_;
  std::span<const float> norm_;
  const UnitChoice& choice_;
  ModuleStats stats_;
};

}  // namespace

ModuleStats compute_stats(const weights::LinearWeights& weights, std::span<const float> norm,
                          const UnitChoice& choice) {
  ModuleStats stats = RowPass(weights, norm, choice).run();
  if (const auto* grouped = std::get_if<GroupedIntWeights>(&weights)) stats.grid = grid_stats(*grouped);
  return stats;
}

}  // namespace nibble::verify
