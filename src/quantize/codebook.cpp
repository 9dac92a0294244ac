#include "quantize/codebook.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "quantize/kmeans.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kRowsPerTask = 16;

std::int32_t bits_of(const Tensor& tables) {
  return std::countr_zero(static_cast<std::uint64_t>(tables.shape()[1]));
}

/// How often each half of the bit patterns of non-negative floats, which order as the floats do, occurs.
using Histogram = std::vector<std::int64_t>;
constexpr std::size_t kHalfPatterns = 1 << 16;

/// The pattern half at which the count from the largest down reaches `wanted`, and how many lie above it.
std::pair<std::uint32_t, std::int64_t> descend(const Histogram& counts, std::int64_t wanted) {
  std::int64_t above = 0;
  for (auto half = static_cast<std::uint32_t>(kHalfPatterns); half-- > 0;) {
    if (above + counts[half] >= wanted) return {half, above};
    above += counts[half];
  }
  return {0, above};
}

/// The value that the `count` largest of key(o, k) reach down to, over all rows o and columns k of `matrix`. Keys are
/// not negative; count >= 1. Two passes instead of a copy to sort: a matrix may have 235 million elements.
template <class Key>
float nth_largest(Matrix<const float> matrix, std::int64_t count, const Key& key) {
  Histogram counts(kHalfPatterns);
  for (std::int64_t o = 0; o < matrix.rows; ++o) {
    for (std::int64_t k = 0; k < matrix.cols; ++k) ++counts[std::bit_cast<std::uint32_t>(key(o, k)) >> 16];
  }
  const auto [high, above] = descend(counts, count);
  std::ranges::fill(counts, 0);
  for (std::int64_t o = 0; o < matrix.rows; ++o) {
    for (std::int64_t k = 0; k < matrix.cols; ++k) {
      const auto pattern = std::bit_cast<std::uint32_t>(key(o, k));
      if (pattern >> 16 == high) ++counts[pattern & 0xffffu];
    }
  }
  return std::bit_cast<float>(high << 16 | descend(counts, count - above).first);
}

/// Chooses positions of one matrix.
class SparseSelection {
 public:
  SparseSelection(Matrix<const float> weight, Matrix<const float> sensitivity)
      : weight_(weight), sensitivity_(sensitivity), is_taken_(static_cast<std::size_t>(weight.rows * weight.cols)) {}

  void take_sensitive(std::int64_t count) {
    take(count, [&](std::int64_t o, std::int64_t k) { return weight_.row(o)[k] != 0 ? sensitivity_.row(o)[k] : 0; });
  }
  void take_outliers(std::int64_t count) {
    take(count, [&](std::int64_t o, std::int64_t k) { return is_taken(o, k) ? 0 : std::abs(weight_.row(o)[k]); });
  }

  std::int64_t count() const { return std::ranges::count(is_taken_, true); }

  SparsePositions positions() const {
    SparsePositions sparse{{0}, {}};
    for (std::int64_t o = 0; o < weight_.rows; ++o) {
      for (std::int64_t k = 0; k < weight_.cols; ++k) {
        if (is_taken(o, k)) sparse.cols.push_back(static_cast<std::int32_t>(k));
      }
      sparse.rows.push_back(static_cast<std::int32_t>(sparse.cols.size()));
    }
    return sparse;
  }

 private:
  /// Flat: row · in + column.
  std::size_t place(std::int64_t o, std::int64_t k) const { return static_cast<std::size_t>(o * weight_.cols + k); }
  bool is_taken(std::int64_t o, std::int64_t k) const { return is_taken_[place(o, k)]; }

  /// The `count` positions of the largest keys, those of equal keys by magnitude and then in order; none of key 0.
  template <class Key>
  void take(std::int64_t count, const Key& key) {
    if (count <= 0) return;
    struct Tie {
      std::size_t place;
      float magnitude;
    };
    const float threshold = nth_largest(weight_, count, key);
    std::vector<std::size_t> taken;
    std::vector<Tie> ties;
    for (std::int64_t o = 0; o < weight_.rows; ++o) {
      for (std::int64_t k = 0; k < weight_.cols; ++k) {
        const float value = key(o, k);
        if (value > threshold) taken.push_back(place(o, k));
        if (value == threshold && value > 0) ties.push_back({place(o, k), std::abs(weight_.row(o)[k])});
      }
    }
    std::ranges::stable_sort(ties, std::greater<>(), &Tie::magnitude);
    ties.resize(std::min(static_cast<std::size_t>(count) - taken.size(), ties.size()));
    for (const std::size_t at : taken) is_taken_[at] = true;
    for (const Tie& tie : ties) is_taken_[tie.place] = true;
  }

  Matrix<const float> weight_;
  Matrix<const float> sensitivity_;
  std::vector<bool> is_taken_;
};

using Table = std::array<float, 16>;

/// Unused places repeat the last entry.
Table read_table(const Tensor& tables, std::int64_t o) {
  Table table;
  const auto row = tables.matrix<Half>().row_span(o);
  for (std::size_t c = 0; c < table.size(); ++c) table[c] = to_float(row[std::min(c, row.size() - 1)]);
  return table;
}

std::uint8_t nearest_to_zero(const Table& table) {
  const auto nearest = std::ranges::min_element(table, {}, [](float entry) { return std::abs(entry); });
  return static_cast<std::uint8_t>(nearest - table.begin());
}

}  // namespace

std::span<const std::int32_t> SparsePositions::row(std::int64_t o) const {
  const auto begin = static_cast<std::size_t>(rows[static_cast<std::size_t>(o)]);
  const auto end = static_cast<std::size_t>(rows[static_cast<std::size_t>(o) + 1]);
  return std::span(cols).subspan(begin, end - begin);
}

SparsePositions select_sparse(Matrix<const float> weight, Matrix<const float> sensitivity, double sparsity) {
  check(sensitivity.rows == weight.rows && sensitivity.cols == weight.cols, "a sensitivity for every weight");
  const auto size = static_cast<double>(weight.rows * weight.cols);
  const std::int64_t total = std::llround(sparsity * size);
  SparseSelection selection(weight, sensitivity);
  selection.take_sensitive(std::min<std::int64_t>(total, std::llround(kSensitiveShare * size)));
  selection.take_outliers(total - selection.count());
  return selection.positions();
}

Tensor without_sparse(Matrix<const float> matrix, const SparsePositions& sparse) {
  Tensor copy = Tensor::empty(DType::F32, {matrix.rows, matrix.cols});
  for (std::int64_t o = 0; o < matrix.rows; ++o) {
    float* row = copy.matrix<float>().row(o);
    std::ranges::copy(matrix.row_span(o), row);
    for (const std::int32_t col : sparse.row(o)) row[col] = 0;
  }
  return copy;
}

Tensor fit_tables(Matrix<const float> weight, Matrix<const float> importance, std::int32_t bits, ThreadPool& pool) {
  Tensor centers = Tensor::empty(DType::F32, {weight.rows, std::int64_t{1} << bits});
  kmeans_rows(weight, importance, centers.matrix<float>(), pool);
  return to_dtype(centers, DType::F16);
}

Tensor nearest_codes(Matrix<const float> weight, const Tensor& tables, ThreadPool& pool) {
  Tensor codes = Tensor::empty(DType::U8, {weight.rows, weight.cols});
  const auto num_entries = static_cast<std::size_t>(tables.shape()[1]);
  pool.run((weight.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    std::vector<float> distances(static_cast<std::size_t>(weight.cols));
    for (std::int64_t o = task * kRowsPerTask; o < std::min(weight.rows, (task + 1) * kRowsPerTask); ++o) {
      const Table table = read_table(tables, o);
      const float* row = weight.row(o);
      std::uint8_t* to = codes.matrix<std::uint8_t>().row(o);
      for (std::size_t k = 0; k < distances.size(); ++k) {
        distances[k] = std::abs(row[k] - table[0]);
        to[k] = 0;
      }
      for (std::size_t c = 1; c < num_entries; ++c) {
        for (std::size_t k = 0; k < distances.size(); ++k) {
          const float distance = std::abs(row[k] - table[c]);
          to[k] = distance < distances[k] ? static_cast<std::uint8_t>(c) : to[k];
          distances[k] = std::min(distance, distances[k]);
        }
      }
    }
  });
  return codes;
}

weights::CodebookWeights assemble_codebook(Matrix<const float> weight, Tensor tables, const Tensor& codes,
                                           const SparsePositions& sparse) {
  weights::CodebookWeights w;
  w.out_features = weight.rows;
  w.in_features = weight.cols;
  w.bits = bits_of(tables);
  w.codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  std::vector<float> vals;
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    const auto natural = codes.matrix<std::uint8_t>().row_span(o);
    std::vector<std::uint8_t> row(natural.begin(), natural.end());
    const Table table = read_table(tables, o);
    const std::uint8_t nearest = nearest_to_zero(table);
    for (const std::int32_t col : sparse.row(o)) {
      row[static_cast<std::size_t>(col)] = nearest;
      vals.push_back(weight.row(o)[col] - table[nearest]);
    }
    weights::pack_codes(row, w.bits, w.codes.matrix<std::uint8_t>().row_span(o));
  }
  w.lookup_table = std::move(tables);
  if (vals.empty()) return w;
  const auto count = static_cast<std::int64_t>(vals.size());
  w.rows = Tensor::copy_of({sparse.rows.data(), DType::I32, {w.out_features + 1}});
  w.cols = Tensor::copy_of({sparse.cols.data(), DType::I32, {count}});
  w.vals = Tensor::copy_of({vals.data(), DType::F32, {count}});
  return w;
}

}  // namespace nibble::quantize
