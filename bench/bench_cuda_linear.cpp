#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/cuda_linear.h"
#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/error.h"
#include "cuda_ceilings.cuh"

/// Linears of the Llama-2 shapes on the GPU: for each method and number of tokens the median time of graph replays that
/// rotate over copies beyond the L2 cache, the weights' bytes a second, and the speed relative to a kernel that only
/// reads so many bytes and to cuBLASLt's f16 product of that shape.
///
///   bench_cuda_linear [--shape OUTxIN] [--method NAME]      both may be given several times; default: all
namespace nibble::bench {
namespace {

using backend::Activation;
using backend::ActivationKind;
using backend::Linear;
namespace cuda = backend::cuda;

struct MatrixSize {
  std::int64_t out_features;
  std::int64_t in_features;
};
constexpr MatrixSize kShapes[] = {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008},
                                  {10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}};
constexpr std::int64_t kTokens[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
constexpr std::size_t kBeyondCache = std::size_t{200} << 20;
constexpr int kMinLaunches = 12;
constexpr int kReplays = 7;

void fill_bytes(Tensor& tensor, std::uint64_t mask, std::mt19937_64& random) {
  auto* bytes = static_cast<std::byte*>(tensor.mutable_view().data());
  for (std::size_t i = 0; i + 8 <= tensor.size_bytes(); i += 8) {
    const std::uint64_t value = random() & mask;
    std::memcpy(bytes + i, &value, sizeof value);
  }
}

/// Halves of magnitudes below 2^-5.
Tensor random_halves(const Shape& shape, std::mt19937_64& random) {
  Tensor tensor = Tensor::zeros(DType::F16, shape);
  fill_bytes(tensor, 0xa7ffa7ffa7ffa7ffULL, random);
  return tensor;
}

weights::LinearWeights make_ints(const MatrixSize& shape, std::int32_t bits, std::mt19937_64& random) {
  weights::GroupedIntWeights w;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = bits;
  w.group_size = 128;
  w.codes = Tensor::zeros(DType::U8, {shape.out_features, weights::packed_row_bytes(shape.in_features, bits)});
  fill_bytes(w.codes, ~std::uint64_t{0}, random);
  w.scales = random_halves({shape.out_features, shape.in_features / 128}, random);
  w.zeros = Tensor::zeros(DType::I16, {shape.out_features, shape.in_features / 128});
  std::ranges::fill(w.zeros.span<std::int16_t>(), static_cast<std::int16_t>(1 << (bits - 1)));
  return w;
}

weights::LinearWeights make_codebook(const MatrixSize& shape, std::int32_t bits, double sparsity,
                                     std::mt19937_64& random) {
  weights::CodebookWeights w;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = bits;
  w.codes = Tensor::zeros(DType::U8, {shape.out_features, weights::packed_row_bytes(shape.in_features, bits)});
  fill_bytes(w.codes, ~std::uint64_t{0}, random);
  w.lookup_table = random_halves({shape.out_features, std::int64_t{1} << bits}, random);
  const auto a_row = static_cast<std::int64_t>(sparsity * static_cast<double>(shape.in_features));
  if (a_row == 0) return w;
  w.rows = Tensor::zeros(DType::I32, {shape.out_features + 1});
  w.cols = Tensor::zeros(DType::I32, {shape.out_features * a_row});
  w.vals = Tensor::zeros(DType::F32, {shape.out_features * a_row});
  for (std::int64_t o = 0; o <= shape.out_features; ++o) {
    w.rows.span<std::int32_t>()[static_cast<std::size_t>(o)] = static_cast<std::int32_t>(o * a_row);
  }
  for (std::int64_t i = 0; i < shape.out_features * a_row; ++i) {
    const std::int64_t step = shape.in_features / a_row;
    const auto at = static_cast<std::size_t>(i);
    w.cols.span<std::int32_t>()[at] =
        static_cast<std::int32_t>(i % a_row * step + static_cast<std::int64_t>(random() % static_cast<unsigned>(step)));
    w.vals.span<float>()[at] = 0.01F;
  }
  return w;
}

weights::LinearWeights make_fp8(const MatrixSize& shape, std::mt19937_64& random) {
  weights::Fp8Weights w;
  w.weight = Tensor::zeros(DType::F8E4M3, {shape.out_features, shape.in_features});
  fill_bytes(w.weight, 0xb7b7b7b7b7b7b7b7ULL, random);  // no NaN
  w.scale = Tensor::zeros(DType::F32, {shape.out_features});
  std::ranges::fill(w.scale.span<float>(), 0.01F);
  return w;
}

struct Method {
  const char* name;
  weights::LinearWeights (*make)(const MatrixSize&, std::mt19937_64&);
};
constexpr Method kMethods[] = {
    {"f16",
     [](const MatrixSize& shape, std::mt19937_64& random) -> weights::LinearWeights {
       return weights::DenseWeights{random_halves({shape.out_features, shape.in_features}, random)};
     }},
    {"fp8", make_fp8},
    {"int8", [](const MatrixSize& shape, std::mt19937_64& random) { return make_ints(shape, 8, random); }},
    {"int4", [](const MatrixSize& shape, std::mt19937_64& random) { return make_ints(shape, 4, random); }},
    {"int3", [](const MatrixSize& shape, std::mt19937_64& random) { return make_ints(shape, 3, random); }},
    {"int2", [](const MatrixSize& shape, std::mt19937_64& random) { return make_ints(shape, 2, random); }},
    {"codebook4", [](const MatrixSize& shape, std::mt19937_64& random) { return make_codebook(shape, 4, 0, random); }},
    {"codebook3", [](const MatrixSize& shape, std::mt19937_64& random) { return make_codebook(shape, 3, 0, random); }},
    {"codebook3sparse",
     [](const MatrixSize& shape, std::mt19937_64& random) { return make_codebook(shape, 3, 0.0045, random); }},
};

class Bench {
 public:
  Bench() : stream_(cuda::make_stream()), read_to_(cuda::device_buffer(16)) {
    cuda::check(cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, 0));
  }

  void run(const MatrixSize& shape, const std::vector<std::string>& methods) {
    std::printf("\n%lld x %lld\n%-16s %5s %9s %7s %8s %8s\n", static_cast<long long>(shape.out_features),
                static_cast<long long>(shape.in_features), "method", "M", "us", "GB/s", "of read", "vs f16");
    make_inputs(shape);
    measure_f16(shape);
    for (const Method& method : kMethods) {
      if (methods.empty() || std::ranges::find(methods, method.name) != methods.end()) measure(shape, method);
    }
  }

 private:
  void make_inputs(const MatrixSize& shape) {
    std::mt19937_64 random(1);
    constexpr std::int64_t kMost = kTokens[std::size(kTokens) - 1];
    x_.format.kind = y_.format.kind = ActivationKind::F16;
    x_.values = cuda::to_device(random_halves({kMost, shape.in_features}, random), stream_.get());
    y_.values = Tensor(cuda::device_buffer(static_cast<std::size_t>(kMost * shape.out_features) * 2), DType::F16,
                       {kMost, shape.out_features});
  }

  /// Microseconds of a launch, where `launch(i)` uses the i-th of `copies`.
  double time(std::size_t copies, const std::function<void(std::size_t)>& launch) {
    launch(0);
    cuda::check(cudaStreamSynchronize(stream_.get()));
    const std::size_t launches = std::max<std::size_t>(kMinLaunches, copies);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    cuda::check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    for (std::size_t i = 0; i < launches; ++i) launch(i % copies);
    cuda::check(cudaStreamEndCapture(stream_.get(), &graph));
    cuda::check(cudaGraphInstantiate(&replay, graph, 0));
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    cuda::check(cudaEventCreate(&begin));
    cuda::check(cudaEventCreate(&end));
    std::vector<float> times(kReplays);
    cuda::check(cudaGraphLaunch(replay, stream_.get()));
    for (float& ms : times) {
      cuda::check(cudaEventRecord(begin, stream_.get()));
      cuda::check(cudaGraphLaunch(replay, stream_.get()));
      cuda::check(cudaEventRecord(end, stream_.get()));
      cuda::check(cudaEventSynchronize(end));
      cuda::check(cudaEventElapsedTime(&ms, begin, end));
    }
    std::ranges::sort(times);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    return 1e3 * times[kReplays / 2] / static_cast<double>(launches);
  }

  void measure_f16(const MatrixSize& shape) {
    const auto bytes = static_cast<std::size_t>(shape.out_features * shape.in_features) * 2;
    const std::size_t copies = kBeyondCache / bytes + 1;
    std::vector<Buffer> weights;
    for (std::size_t i = 0; i < copies; ++i) {
      weights.push_back(cuda::device_buffer(bytes));
      cuda::check(cudaMemsetAsync(weights.back().data(), 0x15, bytes, stream_.get()));
    }
    f16_us_.clear();
    for (const std::int64_t tokens : kTokens) {
      f16_us_.push_back(time(copies, [&](std::size_t i) {
        cublas_.multiply({.m = tokens, .n = shape.out_features, .k = shape.in_features, .y_stride = shape.out_features},
                         x_.values.view().data(), weights[i].data(), y_.values.mutable_view().data(), stream_.get());
      }));
      print("cublas f16", tokens, f16_us_.back(), bytes, read_us(bytes), f16_us_.back());
    }
  }

  void measure(const MatrixSize& shape, const Method& method) {
    std::mt19937_64 random(7);
    std::vector<weights::LinearPart> parts;
    parts.push_back({method.make(shape, random), {}});
    std::vector<std::unique_ptr<Linear>> linears;
    do {
      linears.push_back(
          cuda::make_cuda_linear(parts, {.name = method.name},
                                 {.cublas = cublas_, .fp8 = fp8_, .scratch = scratch_, .stream = stream_.get()}));
    } while (linears.size() * static_cast<std::size_t>(linears.back()->size_bytes()) < kBeyondCache);
    const auto bytes = static_cast<std::size_t>(linears.front()->size_bytes());
    const double read = read_us(bytes);
    for (std::size_t t = 0; t < std::size(kTokens); ++t) {
      x_.num_tokens = kTokens[t];
      const double us = time(linears.size(), [&](std::size_t i) { linears[i]->forward(x_, y_); });
      print(method.name, kTokens[t], us, bytes, read, f16_us_[t]);
    }
  }

  double read_us(std::size_t bytes) {
    const std::size_t copies = kBeyondCache / bytes + 1;
    if (pool_.size_bytes() < copies * bytes) pool_ = cuda::device_buffer(copies * bytes);
    double best = 1e9;
    for (const ReadShape& way : kReadShapes) {
      best = std::min(best, time(copies, [&](std::size_t i) {
                        const auto* from = static_cast<const std::byte*>(pool_.data()) + i * (bytes / 16 * 16);
                        read_memory({from, static_cast<std::int64_t>(bytes / 16 * 16)}, way, num_sms_,
                                    static_cast<std::uint32_t*>(read_to_.data()), stream_.get());
                      }));
    }
    return best;
  }

  static void print(const char* name, std::int64_t tokens, double us, std::size_t bytes, double read, double f16) {
    std::printf("%-16s %5lld %9.2f %7.0f %8.2f %8.2f\n", name, static_cast<long long>(tokens), us,
                static_cast<double>(bytes) / us / 1e3, read / us, f16 / us);
    std::fflush(stdout);
  }

  int num_sms_ = 0;
  cuda::Stream stream_;
  cuda::CublasLt cublas_;
  cuda::Fp8Matmul fp8_{cublas_};
  cuda::Scratch scratch_;
  Buffer read_to_;
  Buffer pool_;
  Activation x_;
  Activation y_;
  std::vector<double> f16_us_;  // by kTokens
};

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  std::vector<std::string> methods;
  std::vector<nibble::bench::MatrixSize> shapes;
  for (int i = 1; i + 1 < argc; i += 2) {
    long long out = 0;
    long long in = 0;
    if (std::strcmp(argv[i], "--method") == 0) methods.emplace_back(argv[i + 1]);
    if (std::strcmp(argv[i], "--shape") == 0 && std::sscanf(argv[i + 1], "%lldx%lld", &out, &in) == 2) {
      shapes.push_back({out, in});
    }
  }
  if (shapes.empty()) shapes.assign(std::begin(nibble::bench::kShapes), std::end(nibble::bench::kShapes));
  try {
    nibble::bench::Bench bench;
    for (const auto& shape : shapes) bench.run(shape, methods);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
