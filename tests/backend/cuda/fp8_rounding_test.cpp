#include "backend/cuda/fp8_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/expect_error.h"
#include "core/thread_pool.h"
#include "gpu.h"

namespace nibble::backend::cuda {
namespace {

using weights::Fp8Granularity;
using weights::Fp8Weights;

constexpr Fp8Granularity kGranularities[] = {Fp8Granularity::PerTensor, Fp8Granularity::PerChannel,
                                             Fp8Granularity::PerBlock};

/// `values` go round over the matrix.
Tensor matrix_of(const std::vector<float>& values, DType dtype, std::int64_t out, std::int64_t in) {
  Tensor tensor = Tensor::empty(DType::F32, {out, in});
  std::size_t next = 0;
  for (float& value : tensor.span<float>()) value = values[next++ % values.size()];
  return to_dtype(tensor, dtype);
}

Tensor normal_matrix(DType dtype, std::int64_t out, std::int64_t in, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(static_cast<std::size_t>(out * in));
  for (float& value : values) value = normal(random);
  return matrix_of(values, dtype, out, in);
}

template <class T>
bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.span<T>().data(), b.span<T>().data(), a.size_bytes()) == 0;
}

void expect_equal(const Tensor& device_codes, const Tensor& host_codes, const std::string& label) {
  const auto device = device_codes.span<Fp8E4M3>();
  const auto host = host_codes.span<Fp8E4M3>();
  ASSERT_EQ(device.size(), host.size()) << label;
  for (std::size_t i = 0; i < host.size(); ++i) ASSERT_EQ(device[i].bits, host[i].bits) << label << " at " << i;
}

void expect_same_as_host(const std::vector<Tensor>& parts, const std::string& label) {
  ThreadPool pool(2);
  const Stream stream = make_stream();
  Uploader uploader(pool, stream.get());
  const std::vector<TensorView> views(parts.begin(), parts.end());
  for (const Fp8Granularity granularity : kGranularities) {
    const std::string which = label + ", granularity " + std::to_string(static_cast<int>(granularity));
    const std::vector<Fp8Weights> host = weights::quantize_fp8(views, granularity, pool);
    const std::vector<Fp8Weights> device = quantize_fp8(views, granularity, uploader);
    ASSERT_EQ(device.size(), host.size());
    for (std::size_t p = 0; p < host.size(); ++p) {
      EXPECT_EQ(device[p].block_size, host[p].block_size) << which;
      EXPECT_TRUE(same_bytes<float>(device[p].scale, host[p].scale)) << which;
      EXPECT_EQ(device[p].weight.device().kind, DeviceKind::Cuda);
      expect_equal(to_host(device[p].weight, stream.get()), host[p].weight, which);
    }
  }
}

TEST(CudaFp8Rounding, GivesTheHostsBitsForOrdinaryWeights) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    std::vector<Tensor> parts;
    parts.push_back(normal_matrix(dtype, 300, 576, 1));
    parts.push_back(normal_matrix(dtype, 128, 576, 2));
    parts.push_back(normal_matrix(dtype, 1, 576, 3));
    expect_same_as_host(parts, "dtype " + std::string(name(dtype)));
  }
  std::vector<Tensor> odd;
  odd.push_back(normal_matrix(DType::F16, 131, 77, 4));
  expect_same_as_host(odd, "odd shape");
  std::vector<Tensor> tall;
  tall.push_back(normal_matrix(DType::F16, 70'000, 8, 5));  // more rows than a grid has blocks
  expect_same_as_host(tall, "tall");
}

TEST(CudaFp8Rounding, GivesTheHostsBitsForEveryF16AndEveryTie) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  std::vector<float> all;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(Half{static_cast<std::uint16_t>(bits)});
    if (std::isfinite(value)) all.push_back(value);
  }
  std::vector<Tensor> halves;
  halves.push_back(matrix_of(all, DType::F16, 63, 1024));
  expect_same_as_host(halves, "every f16");
  // Scale 1: codes' neighbours, halfway points and a float beside each; 448 is every row's largest.
  std::vector<float> ties;
  for (std::uint32_t bits = 0; bits < 0x7e; ++bits) {
    const float low = to_float(Fp8E4M3{static_cast<std::uint8_t>(bits)});
    const float tie = (low + to_float(Fp8E4M3{static_cast<std::uint8_t>(bits + 1)})) / 2;
    for (const float value : {low, tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 500.0f), 448.0f}) {
      ties.push_back(value);
      ties.push_back(-value);
    }
  }
  std::vector<Tensor> floats;
  floats.push_back(matrix_of(ties, DType::F32, 8, static_cast<std::int64_t>(ties.size())));
  expect_same_as_host(floats, "ties");
}

TEST(CudaFp8Rounding, GivesTheHostsBitsAtTheEdges) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::vector<std::pair<std::string, std::vector<float>>> edges{
      {"zeros", {0.0f, -0.0f}},
      {"448", {448.0f, -448.0f, 447.999f, 1.0f}},
      {"subnormal", {kTiny, -3 * kTiny, 1e-40f, 5e-39f}},
      {"largest", {kLargest, -kLargest, 1.0f, kTiny}},
      {"mixed", {1e-30f, 1e30f, -2e-7f, 0.0f, -0.0f, 3.0f}}};
  for (const auto& [label, values] : edges) {
    std::vector<Tensor> parts;
    parts.push_back(matrix_of(values, DType::F32, 130, 257));
    parts.push_back(matrix_of({0.0f}, DType::F32, 3, 257));
    expect_same_as_host(parts, label);
  }
}

TEST(CudaFp8Rounding, RefusesWhatIsNoNumberLikeTheHost) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  ThreadPool pool(2);
  const Stream stream = make_stream();
  Uploader uploader(pool, stream.get());
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      Tensor floats = Tensor::zeros(DType::F32, {200, 300});
      floats.matrix<float>().row(150)[299] = bad;
      const Tensor tensor = to_dtype(floats, dtype);
      const TensorView view = tensor;
      for (const Fp8Granularity granularity : kGranularities) {
        expect_error(ErrorCode::Corrupt, "weight holds NaN or infinity",
                     [&] { quantize_fp8({&view, 1}, granularity, uploader); });
      }
    }
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
