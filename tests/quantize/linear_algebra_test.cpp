#include "quantize/linear_algebra.h"

#include <cblas.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "random_layer.h"

namespace nibble::quantize {
namespace {

TEST(LinearAlgebra, GramIsTheSumOfOuterProducts) {
  ThreadPool pool(2);
  const Tensor x = random_matrix(50, 300, 1);
  const Tensor gram = gram_of(x, pool);
  for (const auto& [i, j] : {std::pair{0, 0}, {10, 290}, {299, 5}, {299, 299}, {256, 255}}) {
    double expected = 0;
    for (std::int64_t t = 0; t < 50; ++t) {
      expected += static_cast<double>(x.matrix<float>().row(t)[i]) * x.matrix<float>().row(t)[j];
    }
    EXPECT_NEAR(gram.matrix<float>().row(i)[j], expected, 1e-3);
  }
}

TEST(LinearAlgebra, UpperFactorGivesTheInverse) {
  ThreadPool pool(1);
  const std::int64_t n = 70;
  Tensor h = gram_of(random_matrix(500, n, 2), pool);
  const Tensor original = Tensor::copy_of(h);
  ASSERT_TRUE(invert_to_upper_cholesky(h.matrix<float>()));
  // h * (U^T U) = 1
  for (std::int64_t i = 0; i < n; i += 7) {
    for (std::int64_t j = 0; j < n; j += 5) {
      double sum = 0;
      for (std::int64_t k = 0; k < n; ++k) {
        double inverse = 0;
        for (std::int64_t m = 0; m < n; ++m) {
          inverse += static_cast<double>(h.matrix<float>().row(m)[k]) * h.matrix<float>().row(m)[j];
        }
        sum += original.matrix<float>().row(i)[k] * inverse;
      }
      EXPECT_NEAR(sum, i == j ? 1 : 0, 1e-4);
    }
    for (std::int64_t j = 0; j < i; ++j) EXPECT_EQ(h.matrix<float>().row(i)[j], 0);
  }
}

TEST(LinearAlgebra, RowsTimesTheInverseOfTheirMatrixAreTheIdentity) {
  ThreadPool pool(1);
  const std::int64_t n = 70;
  Tensor h = gram_of(random_matrix(500, n, 2), pool);
  Tensor rows = Tensor::copy_of(h);
  ASSERT_TRUE(invert_to_upper_cholesky(h.matrix<float>()));
  multiply_by_inverse(h.matrix<float>(), rows.matrix<float>());
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) EXPECT_NEAR(rows.matrix<float>().row(i)[j], i == j ? 1 : 0, 1e-4);
  }
}

TEST(LinearAlgebra, IndefiniteMatrixIsReported) {
  Tensor h = identity(8);
  h.matrix<float>().row(3)[3] = -1;
  EXPECT_FALSE(invert_to_upper_cholesky(h.matrix<float>()));
}

// Debian's serial build gives wrong products when several threads call it at once: seen with 4 and 16 threads on 16
// cores, never on 2.
TEST(LinearAlgebra, OpenBlasIsABuildThatThreadsMayCall) {
  EXPECT_THAT(std::string(openblas_get_config()), testing::Not(testing::HasSubstr("SINGLE_THREADED")));
  EXPECT_EQ(openblas_get_num_threads(), 1);
}

TEST(LinearAlgebra, OpenBlasUsesTheVectorsOfTheMachine) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2 here";
  EXPECT_STRNE(openblas_get_corename(), "Prescott");
}

TEST(LinearAlgebra, BitsDoNotDependOnThreads) {
  ThreadPool one(1);
  ThreadPool two(2);
  const Tensor x = random_matrix(700, 600, 4);
  const Tensor w = random_matrix(130, 600, 5);
  EXPECT_TRUE(same_bytes(gram_of(x, one), gram_of(x, two)));
  Tensor first = Tensor::empty(DType::F32, {700, 130});
  Tensor second = Tensor::empty(DType::F32, {700, 130});
  multiply_transposed(x.matrix<float>(), w.matrix<float>(), first.matrix<float>(), one);
  multiply_transposed(x.matrix<float>(), w.matrix<float>(), second.matrix<float>(), two);
  EXPECT_TRUE(same_bytes(first, second));
}

}  // namespace
}  // namespace nibble::quantize
