#include "quantize/table_fit.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/dtype.h"

namespace nibble::quantize {
namespace {

constexpr double kRidge = 1e-4;
// Sums over columns in chunks: 64 rows x 16 entries x 64 columns of f32 stay in the second cache.
constexpr std::int64_t kChunk = 64;

/// P^T H P of every row of a tile, [rows][entries, entries].
class CodeProducts {
 public:
  CodeProducts(const Hessian& hessian, const Tile& codes, std::int64_t num_entries)
      : num_entries_(num_entries),
        sums_(static_cast<std::size_t>(kTileRows * (num_entries + 1) * kChunk)),
        products_(static_cast<std::size_t>(kTileRows * num_entries * num_entries)) {
    for (std::int64_t first = 0; first < codes.num_columns(); first += kChunk) {
      const std::int64_t count = std::min(kChunk, codes.num_columns() - first);
      sum_rows_by_code(hessian.gram.columns(first, count), codes);
      sum_columns_by_code(codes, first, count);
    }
    add_damping(hessian.damping, codes);
  }

  const double* of_row(std::int64_t row) const { return products_.data() + row * num_entries_ * num_entries_; }

 private:
  /// The last is that of sparse positions, which nobody reads.
  std::int64_t entry_of(float code) const {
    return code == kSparseCode ? num_entries_ : static_cast<std::int64_t>(code);
  }
  float* sums_of(std::int64_t row, std::int64_t entry) {
    return sums_.data() + (row * (num_entries_ + 1) + entry) * kChunk;
  }

  void sum_rows_by_code(Matrix<const float> columns, const Tile& codes) {
    std::ranges::fill(sums_, 0.0f);
    for (std::int64_t k = 0; k < columns.rows; ++k) {
      const float* row = columns.row(k);
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        float* sums = sums_of(r, entry_of(codes[k][r]));
        for (std::int64_t j = 0; j < columns.cols; ++j) sums[j] += row[j];
      }
    }
  }

  void sum_columns_by_code(const Tile& codes, std::int64_t first, std::int64_t count) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      double* products = products_.data() + r * num_entries_ * num_entries_;
      for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t column_entry = entry_of(codes[first + j][r]);
        if (column_entry == num_entries_) continue;
        for (std::int64_t e = 0; e < num_entries_; ++e) products[e * num_entries_ + column_entry] += sums_of(r, e)[j];
      }
    }
  }

  void add_damping(float damping, const Tile& codes) {
    for (std::int64_t k = 0; k < codes.num_columns(); ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        const std::int64_t entry = entry_of(codes[k][r]);
        if (entry == num_entries_) continue;
        products_[static_cast<std::size_t>((r * num_entries_ + entry) * num_entries_ + entry)] += damping;
      }
    }
  }

  std::int64_t num_entries_;
  std::vector<float> sums_;  // [rows, entries + 1, chunk]
  std::vector<double> products_;
};

/// Solves (a + ridge) x = b by Cholesky; a [n, n] symmetric, positive semidefinite. b becomes x.
void solve_ridge(const double* a, double ridge, std::vector<double>& b) {
  const std::size_t n = b.size();
  std::vector<double> lower(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = a[i * n + j] + (i == j ? ridge : 0);
      for (std::size_t k = 0; k < j; ++k) sum -= lower[i * n + k] * lower[j * n + k];
      lower[i * n + j] = i == j ? std::sqrt(std::max(sum, ridge)) : sum / lower[j * n + j];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= lower[i * n + k] * b[k];
    b[i] /= lower[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= lower[k * n + i] * b[k];
    b[i] /= lower[i * n + i];
  }
}

/// x^T a x - 2 b^T x: what moving the entries by x adds to the error.
double change_of_error(const double* a, const std::vector<double>& b, const std::vector<double>& x) {
  double change = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    double product = 0;
    for (std::size_t j = 0; j < x.size(); ++j) product += a[i * x.size() + j] * x[j];
    change += x[i] * (product - 2 * b[i]);
  }
  return change;
}

}  // namespace

void fit_tables_to_codes(const Hessian& hessian, const Tile& codes, const Residual& residual, Tile& tables) {
  const std::int64_t num_entries = tables.num_columns();
  const CodeProducts products(hessian, codes, num_entries);
  std::vector<double> slope(static_cast<std::size_t>(num_entries));
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    std::ranges::fill(slope, 0.0);
    for (std::int64_t k = 0; k < codes.num_columns(); ++k) {
      if (codes[k][r] != kSparseCode) slope[static_cast<std::size_t>(codes[k][r])] += residual[k][r];
    }
    const double* a = products.of_row(r);
    double trace = 0;
    for (std::int64_t e = 0; e < num_entries; ++e) trace += a[e * num_entries + e];
    if (!(trace > 0)) continue;
    std::vector<double> change = slope;
    solve_ridge(a, kRidge * trace / static_cast<double>(num_entries), change);
    std::vector<float> entries(change.size());
    for (std::size_t e = 0; e < entries.size(); ++e) {
      const float old = tables[static_cast<std::int64_t>(e)][r];
      entries[e] = to_float(to_half(old + static_cast<float>(change[e])));
      change[e] = static_cast<double>(entries[e]) - old;
    }
    if (!(change_of_error(a, slope, change) < 0)) continue;
    for (std::size_t e = 0; e < entries.size(); ++e) tables[static_cast<std::int64_t>(e)][r] = entries[e];
  }
}

}  // namespace nibble::quantize
