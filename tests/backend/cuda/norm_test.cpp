#include "backend/cuda/norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/tensor.h"

namespace nibble::backend::cuda {
namespace {

struct Case {
  ActivationKind hidden;
  ActivationKind out;
  bool has_delta;
  std::int64_t num_tokens;
  std::int64_t width;
};

DType dtype_of_kind(ActivationKind kind) {
  if (kind == ActivationKind::F16) return DType::F16;
  return kind == ActivationKind::BF16 ? DType::BF16 : DType::F32;
}

/// Half a unit in the last place, relative.
double rounding(ActivationKind kind) {
  if (kind == ActivationKind::F16) return std::ldexp(1, -11);
  return kind == ActivationKind::BF16 ? std::ldexp(1, -8) : std::ldexp(1, -24);
}

Tensor random_tensor(Shape shape, DType dtype, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Tensor values = Tensor::empty(DType::F32, shape);
  for (float& value : values.span<float>()) value = normal(random);
  return to_dtype(values, dtype);
}

Activation on_device(TensorView values, ActivationKind kind, cudaStream_t stream) {
  Activation activation;
  activation.format.kind = kind;
  activation.values = to_device(values, stream);
  activation.num_tokens = values.shape()[0];
  return activation;
}

class CudaNorm : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    try {
      if (list_devices().empty()) GTEST_SKIP() << "no GPU";
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

TEST_P(CudaNorm, EqualsTheFormulaInDoubleWithinRounding) {
  const Case c = GetParam();
  const Stream stream = make_stream();
  const Shape shape{c.num_tokens, c.width};
  const Tensor hidden = random_tensor(shape, dtype_of_kind(c.hidden), 1);
  const Tensor delta = random_tensor(shape, dtype_of_kind(c.hidden), 2);
  const Tensor weight = random_tensor({c.width}, DType::F32, 3);
  constexpr float kEps = 1e-5F;

  Activation device_hidden = on_device(hidden, c.hidden, stream.get());
  const Activation device_delta = on_device(delta, c.hidden, stream.get());
  Activation out = on_device(Tensor::zeros(dtype_of_kind(c.out), shape), c.out, stream.get());
  out.num_tokens = 0;
  norm(device_hidden, c.has_delta ? &device_delta : nullptr, to_device(weight, stream.get()), kEps, out, stream.get());
  EXPECT_EQ(out.num_tokens, c.num_tokens);

  const Tensor summed = to_dtype(to_host(device_hidden.values, stream.get()), DType::F32);
  const Tensor actual = to_dtype(to_host(out.values, stream.get()), DType::F32);
  const Tensor hidden_f32 = to_dtype(hidden, DType::F32);
  const Tensor delta_f32 = to_dtype(delta, DType::F32);
  for (std::int64_t t = 0; t < c.num_tokens; ++t) {
    double sum_squares = 0;
    for (std::int64_t i = 0; i < c.width; ++i) {
      const double before = hidden_f32.matrix<float>().row(t)[i];
      const double added = c.has_delta ? delta_f32.matrix<float>().row(t)[i] : 0;
      const double stored = summed.matrix<float>().row(t)[i];
      // One f32 addition, then one rounding to the storage type.
      ASSERT_NEAR(stored, before + added, std::abs(before + added) * (rounding(c.hidden) + 1e-7) + 1e-7);
      sum_squares += stored * stored;
    }
    const double inverse_rms = 1 / std::sqrt(sum_squares / static_cast<double>(c.width) + kEps);
    for (std::int64_t i = 0; i < c.width; ++i) {
      const double expected =
          summed.matrix<float>().row(t)[i] * inverse_rms * weight.span<float>()[static_cast<std::size_t>(i)];
      // f32 sum over width in blocks: relative error below 1e-6; then one rounding to out's type. f16 subnormals:
      // 2^-25.
      const double tolerance = std::abs(expected) * (rounding(c.out) + 2e-6) + std::ldexp(1, -25);
      ASSERT_NEAR(actual.matrix<float>().row(t)[i], expected, tolerance) << "token " << t << " channel " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaNorm,
                         testing::Values(Case{ActivationKind::F32, ActivationKind::F32, true, 3, 576},
                                         Case{ActivationKind::F16, ActivationKind::F16, true, 17, 4096},
                                         Case{ActivationKind::F16, ActivationKind::F32, false, 1, 100},
                                         Case{ActivationKind::BF16, ActivationKind::BF16, true, 5, 8192},
                                         Case{ActivationKind::BF16, ActivationKind::F16, false, 2, 1},
                                         Case{ActivationKind::F32, ActivationKind::BF16, true, 64, 577}));

TEST(CudaDevice, RefusesMoreMemoryThanThereIs) {
  try {
    if (list_devices().empty()) GTEST_SKIP() << "no GPU";
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  try {
    device_buffer(std::size_t{1} << 50);
    FAIL() << "a petabyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::OutOfMemory) << error.what();
  }
  EXPECT_EQ(device_buffer(1024).size_bytes(), 1024U);  // the failure is not remembered
}

}  // namespace
}  // namespace nibble::backend::cuda
