#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/interval_partition.h"

namespace nibble::quantize {

/// Exact weighted k-means in one dimension, for one row after another: the centers of least
///
///   Σ_i weights[i] (values[i] - center nearest to values[i])²
///
/// over all choices of `num_centers` centers. Sorted, the clusters of an optimum are intervals, and the least error is
/// a convex function of their number. So the intervals that are best under a price for each (`partition_with_penalty`)
/// are best among all partitions into as many, and a few prices tried find the one that yields `num_centers`. Where
/// none does, because the function has a straight piece there, dynamic programming over the number of clusters (Wang
/// and Song, "Ckmeans.1d.dp", R Journal 2011) decides. Sums in f64; deterministic. Keeps its buffers from row to row:
/// one object a thread.
class RowKmeans {
 public:
  /// 1 … 256 centers.
  explicit RowKmeans(std::int32_t num_centers);

  /// Writes `num_centers` centers, ascending, and returns the weighted error. Values are finite, weights finite and not
  /// negative, both [n], n >= 1. Values of weight zero have no say, unless all weights are zero: then all count the
  /// same. Where there are fewer distinct values than centers the largest center repeats.
  double solve(std::span<const float> values, std::span<const float> weights, std::span<float> centers);

 private:
  void sort_points(std::span<const float> values, std::span<const float> weights);
  void merge_equal_values();
  void sum_prefixes();
  void thin_out();

  /// PointSums that own their memory.
  struct Sums {
    std::vector<double> w;
    std::vector<double> wx;
    std::vector<double> wxx;
    std::int64_t num_points = 0;
    void resize(std::int64_t points);
    PointSums view() const { return {w.data(), wx.data(), wxx.data(), num_points}; }
  };
  bool cut_by_penalty(const Sums& sums, double& penalty);
  double first_penalty() const;
  std::int64_t trace_clusters(std::int64_t num_points);

  void cut_by_layers();
  void fill_layer(std::int32_t layer);
  void fill_range(std::int32_t layer, std::int64_t first, std::int64_t last, std::int32_t low, std::int32_t high);
  double fill_prefix(std::int32_t layer, std::int64_t prefix, std::int32_t low, std::int32_t high);
  std::int32_t* splits_of_layer(std::int32_t layer);

  double write_centers(std::span<float> centers) const;

  std::int32_t num_centers_;
  std::vector<std::uint64_t> keys_;     // (sortable value, weight) pairs
  std::vector<std::uint64_t> swapped_;  // the other half of the radix sort
  // The m distinct values, ascending, with the sums of their weights.
  std::vector<double> values_;
  std::vector<double> weights_;
  Sums sums_;
  Sums thinned_;  // some neighbours merged: tells the price at a fraction of the cost
  // Of the first i points, [m + 1]: the least error minus their Σwx²; of one layer fewer and of this one.
  std::vector<double> previous_;
  std::vector<double> least_;
  std::vector<std::int32_t> splits_;      // first point of the last cluster of that optimum: [layers, m + 1]
  std::vector<std::int32_t> boundaries_;  // first point of each cluster from the last to the first, m in front
};

/// `RowKmeans` for every row: weight and importance [rows, n], centers [rows, num_centers]. Rows run in parallel; the
/// result does not depend on the number of threads.
void kmeans_rows(Matrix<const float> weight, Matrix<const float> importance, Matrix<float> centers, ThreadPool& pool);

}  // namespace nibble::quantize
