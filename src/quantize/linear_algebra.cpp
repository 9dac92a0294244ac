#include "quantize/linear_algebra.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <vector>

// LAPACK as OpenBLAS exports it: column-major, sizes by pointer.
extern "C" {
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* status);
void spotri_(const char* uplo, const int* n, float* a, const int* lda, int* status);
void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* status);
void dpotri_(const char* uplo, const int* n, double* a, const int* lda, int* status);
}

namespace nibble::quantize {
namespace {

// Large enough that packing the panels costs little beside the product, small enough to share between threads.
constexpr std::int64_t kTokenBlock = 256;
constexpr std::int64_t kOutputBlock = 4096;
constexpr std::int64_t kGramBlock = 256;

/// Runs before OpenBLAS's own start (default priority), which reads its environment once. It must start no threads: our
/// pool calls it from every thread, and idle threads of its own would take the signals of `nibble serve`. And it must
/// know the CPU: 0.3.21 takes processors younger than itself for a Prescott, at a tenth of their speed.
__attribute__((constructor(101))) void prepare_openblas() {
  ::setenv("OPENBLAS_NUM_THREADS", "1", /*overwrite=*/1);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    ::setenv("OPENBLAS_CORETYPE", "SkylakeX", /*overwrite=*/0);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    ::setenv("OPENBLAS_CORETYPE", "Haswell", /*overwrite=*/0);
  }
#endif
}

blasint blas_size(std::int64_t size) {
  return static_cast<blasint>(size);
}

void potrf(int n, float* a, int* status) {
  spotrf_("L", &n, a, &n, status);
}
void potrf(int n, double* a, int* status) {
  dpotrf_("L", &n, a, &n, status);
}
void potri(int n, float* a, int* status) {
  spotri_("L", &n, a, &n, status);
}
void potri(int n, double* a, int* status) {
  dpotri_("L", &n, a, &n, status);
}

/// LAPACK's lower triangle, column-major, is the upper one of our row-major matrix, so `a` = U^T U with U upper
/// triangular in our order. h = V^T V, h^-1 from V, then h^-1 = U^T U.
template <class T>
bool factorize(std::int64_t size, std::vector<T>& a) {
  const int n = static_cast<int>(size);
  int status = 0;
  potrf(n, a.data(), &status);
  if (status == 0) potri(n, a.data(), &status);
  if (status == 0) potrf(n, a.data(), &status);
  if (status != 0) return false;
  for (std::int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(a[static_cast<std::size_t>(i * size + i)])) return false;
  }
  return true;
}

template <class T>
bool try_factorize(Matrix<float> h, std::vector<T>& a) {
  a.resize(static_cast<std::size_t>(h.rows * h.cols));
  for (std::int64_t i = 0; i < h.rows; ++i) {
    std::copy_n(h.row(i), h.cols, a.data() + i * h.cols);
  }
  return factorize(h.rows, a);
}

template <class T>
void store_upper(const std::vector<T>& a, Matrix<float> h) {
  for (std::int64_t i = 0; i < h.rows; ++i) {
    std::fill_n(h.row(i), i, 0.0f);
    for (std::int64_t j = i; j < h.cols; ++j)
      h.row(i)[j] = static_cast<float>(a[static_cast<std::size_t>(i * h.cols + j)]);
  }
}

/// A part of a result: rows from `row`, columns from `col`.
struct Block {
  std::int64_t row;
  std::int64_t col;
  Matrix<float> to;
};

/// Calls body(block) for every block of `to`, on the pool's threads.
template <class Body>
void for_each_block(Matrix<float> to, std::int64_t block_rows, std::int64_t block_cols, ThreadPool& pool,
                    const Body& body) {
  const std::int64_t row_blocks = (to.rows + block_rows - 1) / block_rows;
  const std::int64_t col_blocks = (to.cols + block_cols - 1) / block_cols;
  pool.run(row_blocks * col_blocks, [&](std::int64_t task, int) {
    const std::int64_t row = task / col_blocks * block_rows;
    const std::int64_t col = task % col_blocks * block_cols;
    body(Block{row, col,
               to.block(row, std::min(block_rows, to.rows - row)).columns(col, std::min(block_cols, to.cols - col))});
  });
}

}  // namespace

std::string blas_kernels() {
  return openblas_get_corename();
}

void multiply_transposed(Matrix<const float> x, Matrix<const float> w, Matrix<float> y, ThreadPool& pool) {
  check(x.cols == w.cols && y.rows == x.rows && y.cols == w.rows, "multiply_transposed: shapes");
  for_each_block(y, kTokenBlock, kOutputBlock, pool, [&](Block block) {
    multiply_add({x.block(block.row, block.to.rows)}, transposed(w.block(block.col, block.to.cols)), 1, 0, block.to);
  });
}

void accumulate_untransposed(Matrix<const float> x, Matrix<const float> w, Matrix<float> y, ThreadPool& pool) {
  check(x.cols == w.rows && y.rows == x.rows && y.cols == w.cols, "accumulate_untransposed: shapes");
  for_each_block(y, kTokenBlock, kOutputBlock, pool, [&](Block block) {
    multiply_add({x.block(block.row, block.to.rows)}, {w.columns(block.col, block.to.cols)}, 1, 1, block.to);
  });
}

void accumulate_product(Matrix<const float> a, Matrix<const float> b, Matrix<float> to, ThreadPool& pool) {
  check(a.rows == b.rows && to.rows == a.cols && to.cols == b.cols, "accumulate_product: shapes");
  for_each_block(to, kGramBlock, kGramBlock, pool, [&](Block block) {
    multiply_add(transposed(a.columns(block.row, block.to.rows)), {b.columns(block.col, block.to.cols)}, 1, 1,
                 block.to);
  });
}

void accumulate_gram(Matrix<const float> x, Matrix<float> gram, ThreadPool& pool) {
  check(gram.rows == x.cols && gram.cols == x.cols, "accumulate_gram: shapes");
  const std::int64_t num_blocks = (x.cols + kGramBlock - 1) / kGramBlock;
  pool.run(num_blocks * num_blocks, [&](std::int64_t task, int) {
    const std::int64_t i = task / num_blocks * kGramBlock;
    const std::int64_t j = task % num_blocks * kGramBlock;
    if (j < i) return;
    const std::int64_t rows = std::min(kGramBlock, x.cols - i);
    const std::int64_t cols = std::min(kGramBlock, x.cols - j);
    if (i == j) {
      cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, blas_size(rows), blas_size(x.rows), 1.0f, x.data + i,
                  blas_size(x.row_stride), 1.0f, gram.row(i) + i, blas_size(gram.row_stride));
    } else {
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas_size(rows), blas_size(cols), blas_size(x.rows), 1.0f,
                  x.data + i, blas_size(x.row_stride), x.data + j, blas_size(x.row_stride), 1.0f, gram.row(i) + j,
                  blas_size(gram.row_stride));
    }
  });
}

void mirror_upper(Matrix<float> square) {
  for (std::int64_t i = 1; i < square.rows; ++i) {
    for (std::int64_t j = 0; j < i; ++j) square.row(i)[j] = square.row(j)[i];
  }
}

void subtract_product(Matrix<const float> a, Matrix<const float> b, Matrix<float> to) {
  multiply_add(transposed(a), {b}, -1, 1, to);
}

void multiply(Matrix<const float> square, Matrix<const float> b, Matrix<float> to) {
  multiply_add({square}, {b}, 1, 0, to);
}

void multiply_add(const Factor& a, const Factor& b, float scale, float keep, Matrix<float> to) {
  if (to.rows == 0 || to.cols == 0) return;
  const bool a_transposed = a.layout == Factor::Layout::Transposed;
  const std::int64_t depth = a_transposed ? a.matrix.rows : a.matrix.cols;
  cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans,
              b.layout == Factor::Layout::Transposed ? CblasTrans : CblasNoTrans, blas_size(to.rows),
              blas_size(to.cols), blas_size(depth), scale, a.matrix.data, blas_size(a.matrix.row_stride), b.matrix.data,
              blas_size(b.matrix.row_stride), keep, to.data, blas_size(to.row_stride));
}

void multiply_by_inverse(Matrix<const float> upper, Matrix<float> rows) {
  check(upper.rows == rows.cols && upper.cols == rows.cols, "multiply_by_inverse: shapes");
  for (const CBLAS_TRANSPOSE transpose : {CblasTrans, CblasNoTrans}) {
    cblas_strmm(CblasRowMajor, CblasRight, CblasUpper, transpose, CblasNonUnit, blas_size(rows.rows),
                blas_size(rows.cols), 1.0f, upper.data, blas_size(upper.row_stride), rows.data,
                blas_size(rows.row_stride));
  }
}

bool invert_to_upper_cholesky(Matrix<float> h) {
  check(h.rows == h.cols, "invert_to_upper_cholesky: square");
  std::vector<float> single;
  if (try_factorize(h, single)) {
    store_upper(single, h);
    return true;
  }
  std::vector<double> precise;
  if (!try_factorize(h, precise)) return false;
  store_upper(precise, h);
  return true;
}

}  // namespace nibble::quantize
