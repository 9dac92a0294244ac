#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "core/thread_pool.h"

/// Dense linear algebra of the quantizers over OpenBLAS (BLAS and LAPACK). OpenBLAS runs with one thread; the pool cuts
/// the work into blocks whose sizes depend on the shapes alone, each computed in one order, so that results are bitwise
/// the same for any number of threads. Matrices are row-major f32. One thread at a time calls these.
namespace nibble::quantize {

/// For which CPU BLAS has chosen its kernels: "SkylakeX". Others round otherwise.
std::string blas_kernels();

/// y = x w^T     x [tokens, in], w [out, in], y [tokens, out]
void multiply_transposed(Matrix<const float> x, Matrix<const float> w, Matrix<float> y, ThreadPool& pool);

/// y += x w     x [tokens, out], w [out, in], y [tokens, in]
void accumulate_untransposed(Matrix<const float> x, Matrix<const float> w, Matrix<float> y, ThreadPool& pool);

/// to += a^T b     a [tokens, m], b [tokens, n], to [m, n]
void accumulate_product(Matrix<const float> a, Matrix<const float> b, Matrix<float> to, ThreadPool& pool);

/// gram += x^T x     x [tokens, features], gram [features, features]: only its upper triangle is read and written.
void accumulate_gram(Matrix<const float> x, Matrix<float> gram, ThreadPool& pool);

/// Copies the upper triangle into the lower one.
void mirror_upper(Matrix<float> square);

/// to -= a^T b     a [depth, m], b [depth, n], to [m, n]. On the calling thread.
void subtract_product(Matrix<const float> a, Matrix<const float> b, Matrix<float> to);

/// to = square b   square [m, m] symmetric, b [m, n], to [m, n]. On the calling thread.
void multiply(Matrix<const float> square, Matrix<const float> b, Matrix<float> to);

/// A factor of a product, as it stands or transposed.
struct Factor {
  Matrix<const float> matrix;
  enum class Layout : std::uint8_t { Plain, Transposed } layout = Layout::Plain;
};
inline Factor transposed(Matrix<const float> matrix) {
  return {matrix, Factor::Layout::Transposed};
}

/// to = scale a b + keep to. On the calling thread.
void multiply_add(const Factor& a, const Factor& b, float scale, float keep, Matrix<float> to);

/// Replaces the symmetric `h` [n, n] by the upper triangular U with U^T U = h^-1 (zeros below the diagonal); in f32,
/// and once more in f64 where that fails. Returns false, `h` destroyed, where h is not positive definite.
bool invert_to_upper_cholesky(Matrix<float> h);

/// rows = rows h^-1     rows [m, n], `upper` [n, n] the U that invert_to_upper_cholesky left. On the calling thread.
void multiply_by_inverse(Matrix<const float> upper, Matrix<float> rows);

}  // namespace nibble::quantize
