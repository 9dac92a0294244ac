// What this GPU can do at most, measured: the time that a pure read kernel needs for the buffers of a step, one launch
// a buffer, in a CUDA graph; and cuBLASLt's largest products. The figures beside which scripts/gpu-bench sets the
// engine's.
//
// usage: bench_cuda_ceilings STEPS.json RESULT.json
//
// STEPS.json   {"name": [bytes, …], …}: what each step reads, in order
// RESULT.json  {"gpu": …, "read_gb_s": …, "f16_tflops": …, "fp8_tflops": …, "steps": {"name": seconds, …}}
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "backend/cuda/cublas_lt.h"
#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "cuda_ceilings.cuh"

namespace nibble::bench {
namespace {

using backend::cuda::check;
using Graph = std::unique_ptr<CUgraphExec_st, backend::cuda::Destroy<cudaGraphExecDestroy>>;

// A step's buffers lie one after another in an arena far larger than the L2 cache.
constexpr std::int64_t kArenaBytes = std::int64_t{8} << 30;
constexpr int kRepeats = 7;
constexpr std::int64_t kProductSize = 8192;

backend::cuda::Event make_timer() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event));
  return backend::cuda::Event(event);
}

/// The median of several runs, after one that is not measured.
template <class Run>
double median_seconds(cudaStream_t stream, int repeats, const Run& run) {
  const auto begin = make_timer();
  const auto end = make_timer();
  std::vector<double> seconds;
  run();
  for (int i = 0; i < repeats; ++i) {
    check(cudaEventRecord(begin.get(), stream));
    run();
    check(cudaEventRecord(end.get(), stream));
    check(cudaEventSynchronize(end.get()));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  std::ranges::nth_element(seconds, seconds.begin() + repeats / 2);
  return seconds[static_cast<std::size_t>(repeats / 2)];
}

class Ceilings {
 public:
  Ceilings() : stream_(backend::cuda::make_stream()), arena_(backend::cuda::device_buffer(arena_bytes())) {
    check(cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, 0));
    fill_random_f16(arena_.data(), static_cast<std::int64_t>(arena_.size_bytes() / 2), 1, stream_.get());
    check(cudaGetLastError());
    check(cudaStreamSynchronize(stream_.get()));
  }

  /// Seconds to read buffers of these sizes, whichever shape of the read kernel is best.
  double read_seconds(const std::vector<std::int64_t>& sizes) {
    double best = 1e30;
    for (const ReadShape& shape : kReadShapes) {
      const Graph graph = capture(sizes, shape);
      best = std::min(
          best, median_seconds(stream_.get(), kRepeats, [&] { check(cudaGraphLaunch(graph.get(), stream_.get())); }));
    }
    return best;
  }

  /// TFLOP/s of y = x w^T, all 8192 x 8192.
  double product_tflops(DType input) {
    constexpr std::int64_t kElements = kProductSize * kProductSize;
    auto* x = static_cast<std::byte*>(arena_.data());
    std::byte* w = x + 2 * kElements;
    std::byte* y = w + 2 * kElements;
    for (std::byte* operand : {x, w}) {
      const auto seed = static_cast<std::uint32_t>(operand - x + 7);
      (input == DType::F16 ? fill_random_f16 : fill_random_e4m3)(operand, kElements, seed, stream_.get());
    }
    check(cudaGetLastError());
    const double seconds = median_seconds(stream_.get(), 3 * kRepeats, [&] {
      cublas_.multiply({.m = kProductSize,
                        .n = kProductSize,
                        .k = kProductSize,
                        .y_stride = kProductSize,
                        .input = input,
                        .output = DType::F16},
                       x, w, y, stream_.get());
    });
    return 2e-12 * static_cast<double>(kElements) * static_cast<double>(kProductSize) / seconds;
  }

 private:
  /// All of what is free but a gigabyte for cuBLASLt and graphs, up to kArenaBytes.
  static std::size_t arena_bytes() {
    const std::int64_t free_bytes = backend::cuda::device_memory().free_bytes - (std::int64_t{1} << 30);
    if (free_bytes < std::int64_t{1} << 30) throw Error(ErrorCode::OutOfMemory, "the GPU is taken: 2 GB must be free");
    return static_cast<std::size_t>(std::min(free_bytes, kArenaBytes)) / 256 * 256;
  }

  /// Buffers follow one another through the arena, and start again at its beginning.
  Graph capture(const std::vector<std::int64_t>& sizes, const ReadShape& shape) {
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    std::int64_t at = 0;
    for (const std::int64_t size : sizes) {
      const std::int64_t bytes = size / 16 * 16;
      if (at + bytes > static_cast<std::int64_t>(arena_.size_bytes())) at = 0;
      read_memory({static_cast<const std::byte*>(arena_.data()) + at, bytes}, shape, num_sms_,
                  static_cast<std::uint32_t*>(arena_.data()), stream_.get());
      at += (bytes + 255) / 256 * 256;
    }
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_.get(), &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(status);
    return Graph(executable);
  }

  backend::cuda::Stream stream_;
  Buffer arena_;
  backend::cuda::CublasLt cublas_;
  int num_sms_ = 0;
};

/// Null on a GPU without FP8 arithmetic, which standard error then says.
Json fp8_tflops(Ceilings& ceilings) {
  try {
    return ceilings.product_tflops(DType::F8E4M3);
  } catch (const Error& error) {
    fmt::print(stderr, "no FP8 product: {}\n", error.what());
    return nullptr;
  }
}

void run(const char* steps_file, const char* result_file) {
  const auto devices = backend::cuda::list_devices();
  if (devices.empty()) throw Error(ErrorCode::Unavailable, "this machine shows no NVIDIA GPU");
  Ceilings ceilings;
  Json steps = Json::object();
  const Json wanted = read_json_file(steps_file);
  for (const auto& [name, sizes] : wanted.items()) {
    steps[name] = ceilings.read_seconds(sizes.get<std::vector<std::int64_t>>());
  }
  constexpr std::int64_t kLarge = std::int64_t{1} << 30;
  write_json_file(result_file, {{"gpu", devices.front().name},
                                {"read_gb_s", 1e-9 * static_cast<double>(4 * kLarge) /
                                                  ceilings.read_seconds(std::vector(4, kLarge))},
                                {"f16_tflops", ceilings.product_tflops(DType::F16)},
                                {"fp8_tflops", fp8_tflops(ceilings)},
                                {"steps", steps}});
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s STEPS.json RESULT.json\n", argv[0]);
    return 2;
  }
  try {
    nibble::bench::run(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
