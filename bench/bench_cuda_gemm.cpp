// Prefill on a GPU: linears of a 70B model by kind of weights and number of tokens, beside the peak of cuBLASLt's own
// product measured right before (a GPU that gets hot slows down), and the kernels between linears.
//   build/cuda/bin/bench_cuda_gemm [rows | TOKENS...]      default: rows, then linears with 4096 tokens
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/cuda/cublas_lt.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_linear.h"
#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "backend/cuda/norm.h"
#include "backend/cuda/rows.h"
#include "core/error.h"

namespace nibble::bench {
namespace {

using namespace backend;        // NOLINT: the whole file is about these
using namespace backend::cuda;  // NOLINT

struct LinearShape {
  const char* name;
  std::int64_t out_features;
  std::int64_t in_features;
};
constexpr LinearShape kShapes[] = {
    {"qkv", 10240, 8192}, {"o", 8192, 8192}, {"gate_up", 57344, 8192}, {"down", 8192, 28672}};

enum class Kind : std::uint8_t { F16, Fp8TensorStatic, Fp8Channel, Fp8Block, Int4G128 };
constexpr std::pair<Kind, const char*> kKinds[] = {{Kind::F16, "f16"},
                                                   {Kind::Fp8TensorStatic, "fp8 tensor, static"},
                                                   {Kind::Fp8Channel, "fp8 channel x token"},
                                                   {Kind::Fp8Block, "fp8 blocks"},
                                                   {Kind::Int4G128, "int4 g128"}};

/// Bytes whose every bit pattern under `mask` is as likely.
void fill_bytes(MutableTensorView tensor, std::uint64_t mask, std::uint64_t base) {
  std::mt19937_64 random(1);
  auto* words = static_cast<std::uint64_t*>(tensor.data());
  for (std::size_t i = 0; i < tensor.size_bytes() / sizeof(std::uint64_t); ++i) words[i] = (random() & mask) + base;
}

Tensor filled(DType dtype, Shape shape, float value) {
  Tensor tensor = Tensor::empty(DType::F32, shape);
  std::ranges::fill(tensor.span<float>(), value);
  return to_dtype(tensor, dtype);
}

weights::LinearWeights make_weights(Kind kind, std::int64_t out, std::int64_t in) {
  if (kind == Kind::F16) {
    weights::DenseWeights w{Tensor::empty(DType::F16, {out, in})};
    fill_bytes(w.weight.mutable_view(), 0x87ff87ff87ff87ff, 0x2000200020002000);  // ±2^-7 … 2^-6
    return w;
  }
  if (kind == Kind::Int4G128) {
    weights::GroupedIntWeights w{.out_features = out, .in_features = in, .bits = 4, .group_size = 128};
    w.codes = Tensor::empty(DType::U8, {out, weights::packed_row_bytes(in, 4)});
    fill_bytes(w.codes.mutable_view(), ~std::uint64_t{0}, 0);
    w.scales = filled(DType::F16, {out, in / 128}, 0.002F);
    w.zeros = Tensor::empty(DType::I16, {out, in / 128});
    std::ranges::fill(w.zeros.span<std::int16_t>(), std::int16_t{8});
    return w;
  }
  weights::Fp8Weights w{.weight = Tensor::empty(DType::F8E4M3, {out, in})};
  fill_bytes(w.weight.mutable_view(), 0xbfbfbfbfbfbfbfbf, 0);  // ±0 … 1.875: no NaN
  if (kind == Kind::Fp8Block) {
    w.block_size = 128;
    w.scale = filled(DType::F32, {(out + 127) / 128, (in + 127) / 128}, 0.01F);
  } else {
    w.scale = filled(DType::F32, {kind == Kind::Fp8Channel ? out : 1}, 0.01F);
    if (kind == Kind::Fp8TensorStatic) w.input_scale = 0.01F;
  }
  return w;
}

/// Microseconds of `work` on `stream`: the median of short bursts with pauses between them, so that the GPU keeps cool.
double time_us(cudaStream_t stream, const std::function<void()>& work) {
  constexpr int kBursts = 3;
  constexpr int kPerBurst = 3;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  work();
  std::vector<float> times;
  for (int burst = 0; burst < kBursts; ++burst) {
    check(cudaStreamSynchronize(stream));
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    work();
    check(cudaEventRecord(begin, stream));
    for (int i = 0; i < kPerBurst; ++i) work();
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    times.emplace_back();
    check(cudaEventElapsedTime(&times.back(), begin, end));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::ranges::sort(times);
  return times[kBursts / 2] * 1e3 / kPerBurst;
}

/// Microseconds of `work` inside a CUDA graph of many.
double time_in_graph_us(cudaStream_t stream, const std::function<void()>& work) {
  constexpr int kRepeats = 50;
  work();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kRepeats; ++i) work();
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph));
  const double us = time_us(stream, [&] { check(cudaGraphLaunch(executable, stream)); });
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return us / kRepeats;
}

/// TFLOP/s of cuBLASLt's own product of square matrices.
class Peak {
 public:
  Peak(CublasLt& cublas, cudaStream_t stream) : cublas_(cublas), stream_(stream) {
    Tensor host = Tensor::empty(DType::F16, {kSize, kSize});
    fill_bytes(host.mutable_view(), 0xbfbfbfbfbfbfbfbf, 0);
    x_ = to_device(host, stream);
    y_ = to_device(host, stream);
    scale_ = to_device(filled(DType::F32, {1}, 0.001F), stream);
  }

  double tflops(DType input) {
    const auto* scale = static_cast<const float*>(scale_.view().data());
    const double us = time_us(stream_, [&] {
      cublas_.multiply({.m = kSize,
                        .n = kSize,
                        .k = kSize,
                        .y_stride = kSize,
                        .input = input,
                        .output = DType::F16,
                        .scaling = input == DType::F8E4M3 ? Fp8Scaling::Tensor : Fp8Scaling::None},
                       x_.view().data(), x_.view().data(), y_.mutable_view().data(), stream_, {scale, scale});
    });
    return 2.0 * kSize * kSize * kSize / us * 1e-6;
  }

 private:
  static constexpr std::int64_t kSize = 8192;
  CublasLt& cublas_;
  cudaStream_t stream_;
  Tensor x_, y_, scale_;
};

Activation make_activation(std::int64_t rows, std::int64_t width, cudaStream_t stream) {
  Tensor host = Tensor::empty(DType::F16, {rows, width});
  fill_bytes(host.mutable_view(), 0x8fff8fff8fff8fff, 0x3000300030003000);  // ±2^-3 … 2
  Activation activation;
  activation.format.kind = ActivationKind::F16;
  activation.values = to_device(host, stream);
  activation.num_tokens = rows;
  return activation;
}

void measure_linears(const std::vector<std::int64_t>& token_counts) {
  const Stream stream = make_stream();
  CublasLt cublas;
  Fp8Matmul fp8(cublas);
  Scratch scratch;
  Peak peak(cublas, stream.get());
  const LinearContext context{.cublas = cublas, .fp8 = fp8, .scratch = scratch, .stream = stream.get()};
  std::printf("%-8s %6s %-20s %10s %9s %9s %8s\n", "linear", "tokens", "weights", "us", "TFLOP/s", "peak", "of peak");
  for (const LinearShape& shape : kShapes) {
    for (const auto& [kind, name] : kKinds) {
      std::vector<weights::LinearPart> parts;
      parts.push_back({make_weights(kind, shape.out_features, shape.in_features), {}});
      const auto linear = make_cuda_linear(parts, {.name = shape.name}, context);
      parts.clear();
      for (const std::int64_t num_tokens : token_counts) {
        const Activation x = make_activation(num_tokens, shape.in_features, stream.get());
        Activation y = make_activation(num_tokens, shape.out_features, stream.get());
        const bool is_fp8 = kind != Kind::F16 && kind != Kind::Int4G128;
        const double limit = peak.tflops(is_fp8 ? DType::F8E4M3 : DType::F16);
        const double us = time_us(stream.get(), [&] { linear->forward(x, y); });
        const double flops = 2.0 * static_cast<double>(num_tokens * shape.out_features * shape.in_features);
        const double tflops = flops / us * 1e-6;
        std::printf("%-8s %6ld %-20s %10.1f %9.0f %9.0f %7.1f%%\n", shape.name, num_tokens, name, us, tflops, limit,
                    100 * tflops / limit);
      }
    }
  }
}

void measure_rows() {
  const Stream stream = make_stream();
  std::printf("%-10s %6s %6s %10s %9s\n", "kernel", "width", "tokens", "us", "GB/s");
  for (const std::int64_t width : {8192, 28672}) {
    for (const std::int64_t num_tokens : {1, 16, 4096}) {
      Activation hidden = make_activation(num_tokens, width, stream.get());
      const Activation delta = make_activation(num_tokens, width, stream.get());
      const Activation wide = make_activation(num_tokens, 2 * width, stream.get());
      Activation out = make_activation(num_tokens, width, stream.get());
      const Tensor weight = to_device(filled(DType::F32, {width}, 0.5F), stream.get());
      const auto report = [&](const char* name, int values, const std::function<void()>& work) {
        const double us = time_in_graph_us(stream.get(), work);
        const auto bytes = static_cast<double>(num_tokens * width * values) * 2;
        std::printf("%-10s %6ld %6ld %10.2f %9.0f\n", name, width, num_tokens, us, bytes / us * 1e-3);
      };
      report("norm", 4, [&] { norm(hidden, &delta, weight, 1e-5F, out, stream.get()); });
      report("silu_mul", 3, [&] { silu_mul(wide, out, stream.get()); });
      report("add", 3, [&] { add(hidden, delta, stream.get()); });
      report("add_bias", 2, [&] { add_bias(weight, out, stream.get()); });
    }
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    const bool has_rows = argc == 1 || std::string_view(argv[1]) == "rows";
    std::vector<std::int64_t> token_counts;
    for (int i = 1; i < argc && !has_rows; ++i) token_counts.push_back(std::atoll(argv[i]));
    if (argc == 1) token_counts = {4096};
    for (const auto& device : nibble::backend::cuda::list_devices()) std::printf("%s\n", device.name.c_str());
    if (has_rows) nibble::bench::measure_rows();
    if (!token_counts.empty()) nibble::bench::measure_linears(token_counts);
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
