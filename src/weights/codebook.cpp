#include <string>
#include <vector>

#include "weights/kinds.h"

namespace nibble::weights {
namespace {

bool has_sparse(const CodebookWeights& w) {
  return !w.rows.is_empty();
}

void validate_sparse(const CodebookWeights& w) {
  expect_shape(w.rows, {w.out_features + 1}, "rows");
  const std::int64_t nnz = w.vals.num_elements();
  if (w.cols.num_elements() != nnz) throw Error(ErrorCode::Corrupt, "cols and vals differ in length");
  const auto rows = w.rows.span<std::int32_t>();
  if (rows.front() != 0 || rows.back() != nnz) throw Error(ErrorCode::Corrupt, "rows must run from 0 to nnz");
  for (std::size_t o = 0; o + 1 < rows.size(); ++o) {
    if (rows[o] > rows[o + 1]) throw Error(ErrorCode::Corrupt, "rows: not monotone at " + std::to_string(o));
  }
  if (nnz == 0) return;
  for (const std::int32_t col : w.cols.span<std::int32_t>()) {
    if (col < 0 || col >= w.in_features) {
      throw Error(ErrorCode::Corrupt, "cols: " + std::to_string(col) + " outside the inputs");
    }
  }
  expect_finite(w.vals, "vals");
}

/// The CSR entries whose row and column lie in the ranges, with rows and columns renumbered from 0.
void slice_sparse(const CodebookWeights& w, std::int64_t first_row, std::int64_t num_rows, std::int64_t first_col,
                  std::int64_t num_cols, CodebookWeights& slice) {
  if (!has_sparse(w)) return;
  std::vector<std::int32_t> rows{0};
  std::vector<std::int32_t> cols;
  std::vector<float> vals;
  const auto source_rows = w.rows.span<std::int32_t>();
  for (std::int64_t o = first_row; o < first_row + num_rows; ++o) {
    const auto row = static_cast<std::size_t>(o);
    for (auto j = static_cast<std::size_t>(source_rows[row]); j < static_cast<std::size_t>(source_rows[row + 1]); ++j) {
      const std::int64_t col = w.cols.span<std::int32_t>()[j] - first_col;
      if (col < 0 || col >= num_cols) continue;
      cols.push_back(static_cast<std::int32_t>(col));
      vals.push_back(w.vals.span<float>()[j]);
    }
    rows.push_back(static_cast<std::int32_t>(cols.size()));
  }
  const auto copy = [](const void* data, DType dtype, std::size_t count) {
    return Tensor::copy_of({data, dtype, {static_cast<std::int64_t>(count)}});
  };
  slice.rows = copy(rows.data(), DType::I32, rows.size());
  slice.cols = copy(cols.data(), DType::I32, cols.size());
  slice.vals = copy(vals.data(), DType::F32, vals.size());
}

}  // namespace

std::int64_t out_features_of(const CodebookWeights& w) {
  return w.out_features;
}
std::int64_t in_features_of(const CodebookWeights& w) {
  return w.in_features;
}

std::int64_t size_bytes_of(const CodebookWeights& w) {
  return static_cast<std::int64_t>(w.codes.size_bytes() + w.lookup_table.size_bytes() + w.rows.size_bytes() +
                                   w.cols.size_bytes() + w.vals.size_bytes());
}

std::string describe_kind(const CodebookWeights& w) {
  return "codebook " + std::to_string(w.bits) + " bit" + (has_sparse(w) ? " + sparse" : "");
}

void validate_kind(const CodebookWeights& w) {
  if (w.bits != 3 && w.bits != 4) {
    throw Error(ErrorCode::Unsupported, "codebook of " + std::to_string(w.bits) + " bits; 3 and 4 are supported");
  }
  expect_shape(w.codes, {w.out_features, packed_row_bytes(w.in_features, w.bits)}, "packed codes");
  expect_shape(w.lookup_table, {w.out_features, std::int64_t{1} << w.bits}, "lookup_table");
  expect_finite(w.lookup_table, "lookup_table");
  if (has_sparse(w)) validate_sparse(w);
}

void dequantize_rows_of(const CodebookWeights& w, std::int64_t first_row, Matrix<float> to) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.in_features));
  std::vector<float> table(std::size_t{1} << w.bits);
  for (std::int64_t r = 0; r < to.rows; ++r) {
    const std::int64_t o = first_row + r;
    unpack_codes(w.codes.matrix<std::uint8_t>().row_span(o), w.bits, codes);
    to_float32(w.lookup_table.view().rows(o, 1).data(), w.lookup_table.dtype(), w.lookup_table.shape()[1],
               table.data());
    for (std::size_t i = 0; i < codes.size(); ++i) to.row(r)[i] = table[codes[i]];
    if (!has_sparse(w)) continue;
    const auto rows = w.rows.span<std::int32_t>();
    for (auto j = static_cast<std::size_t>(rows[static_cast<std::size_t>(o)]);
         j < static_cast<std::size_t>(rows[static_cast<std::size_t>(o) + 1]); ++j) {
      to.row(r)[w.cols.span<std::int32_t>()[j]] += w.vals.span<float>()[j];
    }
  }
}

CodebookWeights slice_outputs_of(const CodebookWeights& w, std::int64_t first, std::int64_t count) {
  CodebookWeights slice;
  slice.out_features = count;
  slice.in_features = w.in_features;
  slice.bits = w.bits;
  slice.codes = copy_rows(w.codes, first, count);
  slice.lookup_table = copy_rows(w.lookup_table, first, count);
  slice_sparse(w, first, count, 0, w.in_features, slice);
  return slice;
}

CodebookWeights slice_inputs_of(const CodebookWeights& w, std::int64_t first, std::int64_t count) {
  CodebookWeights slice;
  slice.out_features = w.out_features;
  slice.in_features = count;
  slice.bits = w.bits;
  slice.codes = slice_code_columns(w.codes, w.in_features, w.bits, first, count);
  slice.lookup_table = Tensor::copy_of(w.lookup_table);
  slice_sparse(w, 0, w.out_features, first, count, slice);
  return slice;
}

}  // namespace nibble::weights
