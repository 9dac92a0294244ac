#include "quantize/kmeans.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

namespace nibble::quantize {
namespace {

constexpr std::int64_t kRowsPerTask = 4;
constexpr std::int64_t kThinnedPoints = 384;

/// An unsigned number that orders as the float does, for finite floats.
std::uint32_t sortable(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);  // -0 becomes 0
  return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
}

float from_sortable(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/// Stable counting sort by 11 bits of the value from `shift` on; false, with nothing moved, where all are equal there:
/// what was f16 once has ten such bits at the end.
bool sort_by_digit(const std::vector<std::uint64_t>& from, std::vector<std::uint64_t>& to, int shift) {
  constexpr std::size_t kBuckets = 1 << 11;
  std::array<std::uint32_t, kBuckets> starts{};
  const auto digit = [shift](std::uint64_t key) { return static_cast<std::size_t>(key >> shift) % kBuckets; };
  for (const std::uint64_t key : from) ++starts[digit(key)];
  if (starts[digit(from.front())] == from.size()) return false;
  std::uint32_t start = 0;
  for (std::uint32_t& bucket : starts) start += std::exchange(bucket, start);
  for (const std::uint64_t key : from) to[starts[digit(key)]++] = key;
  return true;
}

}  // namespace

RowKmeans::RowKmeans(std::int32_t num_centers) : num_centers_(num_centers) {
  check(num_centers >= 1 && num_centers <= 256, "RowKmeans of fewer than 1 or more than 256 centers");
}

double RowKmeans::solve(std::span<const float> values, std::span<const float> weights, std::span<float> centers) {
  check(!values.empty() && values.size() == weights.size(), "RowKmeans: a weight for every value, and at least one");
  check(centers.size() == static_cast<std::size_t>(num_centers_), "RowKmeans: as many centers as it was made for");
  sort_points(values, weights);
  merge_equal_values();
  if (values_.size() <= centers.size()) {
    boundaries_.clear();
    for (auto i = static_cast<std::int32_t>(values_.size()); i >= 0; --i) boundaries_.push_back(i);
  } else {
    sum_prefixes();
    double penalty = first_penalty();
    if (sums_.num_points > kThinnedPoints) {
      thin_out();
      cut_by_penalty(thinned_, penalty);
    }
    if (!cut_by_penalty(sums_, penalty)) cut_by_layers();
  }
  return write_centers(centers);
}

void RowKmeans::sort_points(std::span<const float> values, std::span<const float> weights) {
  const bool has_weight = std::ranges::any_of(weights, [](float weight) { return weight > 0; });
  keys_.resize(values.size());
  std::size_t count = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float weight = has_weight ? weights[i] : 1.0f;
    keys_[count] = std::uint64_t{sortable(values[i])} << 32 | std::bit_cast<std::uint32_t>(weight);
    count += weight > 0 ? 1 : 0;
  }
  keys_.resize(count);
  swapped_.resize(keys_.size());
  for (const int shift : {32, 43, 54}) {
    if (sort_by_digit(keys_, swapped_, shift)) std::swap(keys_, swapped_);
  }
}

void RowKmeans::merge_equal_values() {
  const auto weight_of = [](std::uint64_t key) {
    return double{std::bit_cast<float>(static_cast<std::uint32_t>(key))};
  };
  double total = 0;
  for (const std::uint64_t key : keys_) total += weight_of(key);
  // A weight that vanishes in the sum before it would make intervals without weight; this little of it has no effect
  // that f32 centers could show.
  const double smallest = std::ldexp(total, -48);
  values_.clear();
  weights_.clear();
  std::uint64_t last = ~std::uint64_t{0};  // no value's
  for (const std::uint64_t key : keys_) {
    if (key >> 32 == last) {
      weights_.back() += weight_of(key);
      continue;
    }
    last = key >> 32;
    values_.push_back(from_sortable(static_cast<std::uint32_t>(last)));
    weights_.push_back(std::max(weight_of(key), smallest));
  }
}

void RowKmeans::Sums::resize(std::int64_t points) {
  num_points = points;
  const auto padded = static_cast<std::size_t>(points + kPartitionGroup);
  for (std::vector<double>* sums : {&w, &wx, &wxx}) sums->resize(padded);
}

void RowKmeans::sum_prefixes() {
  const std::size_t num_points = values_.size();
  sums_.resize(static_cast<std::int64_t>(num_points));
  sums_.w[0] = sums_.wx[0] = sums_.wxx[0] = 0;
  for (std::size_t i = 0; i + 1 < sums_.w.size(); ++i) {
    const double weight = i < num_points ? weights_[i] : 0;
    const double value = i < num_points ? values_[i] : 0;
    sums_.w[i + 1] = sums_.w[i] + weight;
    sums_.wx[i + 1] = sums_.wx[i] + weight * value;
    sums_.wxx[i + 1] = sums_.wxx[i] + weight * value * value;
  }
  for (std::vector<double>* buffer : {&previous_, &least_}) buffer->resize(sums_.w.size());
  splits_.resize(num_points + 1);
}

void RowKmeans::thin_out() {
  thinned_.resize(kThinnedPoints);
  for (std::size_t i = 0; i < thinned_.w.size(); ++i) {
    const std::size_t from = std::min(i, std::size_t{kThinnedPoints}) * values_.size() / kThinnedPoints;
    thinned_.w[i] = sums_.w[from];
    thinned_.wx[i] = sums_.wx[from];
    thinned_.wxx[i] = sums_.wxx[from];
  }
}

// The least error f(k) of k clusters is convex, and a price p picks the k where f(k) + p k is least: the slopes of f
// beside num_centers bound the prices that yield it. Once prices are known that yield fewer and more, the slope of the
// chord between them yields a count strictly between, or f is straight there.
bool RowKmeans::cut_by_penalty(const Sums& sums, double& penalty) {
  struct Point {
    double count;
    double error;
  };
  constexpr int kMaxPasses = 32;
  std::optional<Point> fewer;
  std::optional<Point> more;
  for (int pass = 0; pass < kMaxPasses && penalty > 0 && std::isfinite(penalty); ++pass) {
    partition_with_penalty(sums.view(), penalty, least_.data(), splits_.data());
    const std::int64_t count = trace_clusters(sums.num_points);
    if (count == num_centers_) return true;
    const auto clusters = static_cast<double>(count);
    const auto end = static_cast<std::size_t>(sums.num_points);
    const Point point{clusters, least_[end] + sums.wxx[end] - penalty * clusters};
    auto& side = count < num_centers_ ? fewer : more;
    if (fewer && more && side->count == clusters) return false;
    side = point;
    if (fewer && more) {
      penalty = (fewer->error - more->error) / (more->count - fewer->count);
    } else {
      // f falls with about 1/k², its slope with 1/k³.
      const double ratio = clusters / num_centers_;
      penalty *= ratio * ratio * ratio;
    }
  }
  return false;
}

/// What high-resolution theory makes of the density of the points: f(k) = (∫ρ^(1/3))³ / (12 k²) (Panter and Dite 1951),
/// and the price is the slope.
double RowKmeans::first_penalty() const {
  constexpr std::size_t kBlocks = 64;
  const std::size_t num_points = values_.size();
  double integral = 0;
  for (std::size_t b = 0; b < kBlocks; ++b) {
    const std::size_t begin = b * num_points / kBlocks;
    const std::size_t end = (b + 1) * num_points / kBlocks;
    const double width = values_[std::min(end, num_points - 1)] - values_[begin];
    integral += std::cbrt((sums_.w[end] - sums_.w[begin]) * width * width);
  }
  const double k = num_centers_;
  return integral * integral * integral / (6 * k * k * k);
}

/// Sets boundaries_ from the last points back; how many clusters there are.
std::int64_t RowKmeans::trace_clusters(std::int64_t num_points) {
  boundaries_.assign(1, static_cast<std::int32_t>(num_points));
  while (boundaries_.back() > 0) boundaries_.push_back(splits_[static_cast<std::size_t>(boundaries_.back())]);
  return static_cast<std::int64_t>(boundaries_.size()) - 1;
}

void RowKmeans::cut_by_layers() {
  const std::size_t num_points = values_.size();
  splits_.resize(static_cast<std::size_t>(num_centers_) * (num_points + 1));
  least_[0] = 0;
  for (std::size_t i = 1; i <= num_points; ++i) least_[i] = -sums_.wx[i] * sums_.wx[i] / sums_.w[i];
  std::fill_n(splits_of_layer(0), num_points + 1, 0);
  for (std::int32_t layer = 1; layer < num_centers_; ++layer) fill_layer(layer);
  boundaries_.assign(1, static_cast<std::int32_t>(num_points));
  for (std::int32_t layer = num_centers_; layer-- > 0;) {
    boundaries_.push_back(splits_of_layer(layer)[boundaries_.back()]);
  }
}

std::int32_t* RowKmeans::splits_of_layer(std::int32_t layer) {
  return splits_.data() + static_cast<std::size_t>(layer) * (values_.size() + 1);
}

void RowKmeans::fill_layer(std::int32_t layer) {
  const auto num_points = static_cast<std::int64_t>(values_.size());
  std::swap(previous_, least_);
  // Of the last layer only the whole row is asked for.
  const std::int64_t first = layer + 1 == num_centers_ ? num_points : layer + 1;
  fill_range(layer, first, num_points, layer, static_cast<std::int32_t>(num_points - 1));
}

/// The best split moves monotonically with the prefix: divide and conquer.
void RowKmeans::fill_range(std::int32_t layer, std::int64_t first, std::int64_t last, std::int32_t low,
                           std::int32_t high) {
  if (first > last) return;
  const std::int64_t prefix = (first + last) / 2;
  least_[static_cast<std::size_t>(prefix)] = fill_prefix(layer, prefix, low, high);
  const std::int32_t split = splits_of_layer(layer)[prefix];
  fill_range(layer, first, prefix - 1, low, split);
  fill_range(layer, prefix + 1, last, split, high);
}

double RowKmeans::fill_prefix(std::int32_t layer, std::int64_t prefix, std::int32_t low, std::int32_t high) {
  const auto i = static_cast<std::size_t>(prefix);
  const auto last = static_cast<std::size_t>(std::min<std::int64_t>(high, prefix - 1));
  double least = std::numeric_limits<double>::infinity();
  for (auto s = static_cast<std::size_t>(low); s <= last; ++s) {
    const double wx = sums_.wx[i] - sums_.wx[s];
    const double error = previous_[s] - wx * wx / (sums_.w[i] - sums_.w[s]);
    if (error >= least) continue;
    least = error;
    splits_of_layer(layer)[prefix] = static_cast<std::int32_t>(s);
  }
  return least;
}

double RowKmeans::write_centers(std::span<float> centers) const {
  const std::size_t num_clusters = boundaries_.size() - 1;
  double error = 0;
  for (std::size_t c = 0; c < num_clusters; ++c) {
    const auto begin = static_cast<std::size_t>(boundaries_[num_clusters - c]);
    const auto end = static_cast<std::size_t>(boundaries_[num_clusters - c - 1]);
    double w = 0;
    double wx = 0;
    for (std::size_t i = begin; i < end; ++i) {
      w += weights_[i];
      wx += weights_[i] * values_[i];
    }
    const double center = wx / w;
    for (std::size_t i = begin; i < end; ++i) error += weights_[i] * (values_[i] - center) * (values_[i] - center);
    centers[c] = static_cast<float>(center);
  }
  std::ranges::fill(centers.subspan(num_clusters), centers[num_clusters - 1]);
  return error;
}

void kmeans_rows(Matrix<const float> weight, Matrix<const float> importance, Matrix<float> centers, ThreadPool& pool) {
  check(importance.rows == weight.rows && importance.cols == weight.cols && centers.rows == weight.rows,
        "kmeans_rows of matrices of other shapes");
  std::vector<RowKmeans> solvers(static_cast<std::size_t>(pool.num_threads()),
                                 RowKmeans(static_cast<std::int32_t>(centers.cols)));
  pool.run((weight.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int thread) {
    const std::int64_t end = std::min(weight.rows, (task + 1) * kRowsPerTask);
    for (std::int64_t r = task * kRowsPerTask; r < end; ++r) {
      solvers[static_cast<std::size_t>(thread)].solve(weight.row_span(r), importance.row_span(r), centers.row_span(r));
    }
  });
}

}  // namespace nibble::quantize
