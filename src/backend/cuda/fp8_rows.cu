#include "backend/cuda/fp8_rows.h"

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/vectors.cuh"

// Both directions move bytes: 3 a value (f16 in, E4M3 out), and 6 a sum (f32 in, f16 out). The ceiling is a copy's
// rate.
namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInputsPerScale = 128;

/// 448 is E4M3's largest number; the floor, which is vLLM's, lets zeros divide. NaN stays NaN.
__device__ float fp8_scale(float largest) {
  constexpr float kLargest = 448;
  constexpr float kSmallestScale = 1 / (kLargest * 512);
  const float scale = largest / kLargest;
  return scale < kSmallestScale ? kSmallestScale : scale;
}

/// A larger magnitude, or a NaN, which a maximum would drop.
__device__ float larger(float a, float b) {
  return a > b || isnan(a) ? a : b;
}

template <int kSize>
__device__ float largest_magnitude(const float (&values)[kSize]) {
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kSize; ++j) largest = larger(fabsf(values[j]), largest);
  return largest;
}

/// Over runs of kLanes lanes, which all get it.
template <int kLanes>
__device__ float largest_of_lanes(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(0xffffffff, value, offset));
  }
  return value;
}

__device__ float largest_of_block(float value) {
  __shared__ float of_warp[kThreads / kWarpSize];
  value = largest_of_lanes<kWarpSize>(value);
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  return largest_of_lanes<kThreads / kWarpSize>(of_warp[threadIdx.x % (kThreads / kWarpSize)]);
}

/// Nearest codes of values / scale, ties to even, clamped to ±448.
template <int kSize>
__device__ void store_codes(const float (&values)[kSize], float scale, std::uint8_t* codes) {
  Run<__nv_fp8_storage_t, kSize> run;
#pragma unroll
  for (int j = 0; j < kSize; ++j) run.values[j] = __nv_cvt_float_to_fp8(values[j] / scale, __NV_SATFINITE, __NV_E4M3);
  *reinterpret_cast<Run<__nv_fp8_storage_t, kSize>*>(codes) = run;
}

/// A block a row. The first kVectors vectors of a thread stay in registers between the two passes.
template <class T, int kVectors>
__global__ void __launch_bounds__(kThreads)
    quantize_tokens_kernel(const T* x, std::int64_t width, std::int64_t num_rows, float static_scale, Fp8Rows to) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  constexpr int kSize = kVectorSize<T>;
  const std::int64_t row = blockIdx.x;
  const T* from = x + row * width;
  auto* codes = static_cast<std::uint8_t*>(to.codes) + row * to.row_bytes;
  const std::int64_t vectors = row < num_rows ? num_vectors<T>(width) : 0;
  float kept[kVectors][kSize] = {};
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t v = i * kThreads + threadIdx.x;
    if (v < vectors) load_run(from, v, width, kept[i]);
  }
  float scale = static_scale;
  if (static_scale == 0) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) largest = larger(largest_magnitude(kept[i]), largest);
    for (std::int64_t v = kVectors * kThreads + threadIdx.x; v < vectors; v += kThreads) {
      float values[kSize];
      load_run(from, v, width, values);
      largest = larger(largest_magnitude(values), largest);
    }
    scale = fp8_scale(largest_of_block(largest));
  }
  if (threadIdx.x == 0) to.scales[row] = scale;
  const std::int64_t stored = to.row_bytes / kSize;  // with the zeros at the end
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t v = i * kThreads + threadIdx.x;
    if (v < stored) store_codes(kept[i], scale, codes + v * kSize);
  }
  for (std::int64_t v = kVectors * kThreads + threadIdx.x; v < stored; v += kThreads) {
    float values[kSize] = {};
    if (v < vectors) load_run(from, v, width, values);
    store_codes(values, scale, codes + v * kSize);
  }
}

/// A thread a vector; the lanes of 128 inputs find their scale together. Grid: rows in y.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_runs_kernel(const T* x, std::int64_t width, std::int64_t num_rows, Fp8Rows to) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  constexpr int kSize = kVectorSize<T>;
  constexpr int kLanes = kInputsPerScale / kSize;
  const std::int64_t row = blockIdx.x;
  const std::int64_t v = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  float values[kSize] = {};
  if (row < num_rows && v < num_vectors<T>(width)) load_run(x + row * width, v, width, values);
  const float scale = fp8_scale(largest_of_lanes<kLanes>(largest_magnitude(values)));
  if (v * kSize >= to.row_bytes) return;
  if (v % kLanes == 0 && v * kSize < width) to.scales[v / kLanes * to.scale_stride + row] = scale;
  store_codes(values, scale, static_cast<std::uint8_t*>(to.codes) + row * to.row_bytes + v * kSize);
}

template <class T>
void quantize(const T* x, std::int64_t width, std::int64_t num_rows, std::int64_t num_written_rows,
              const ActivationFormat& format, const Fp8Rows& to, cudaStream_t stream) {
  const std::int64_t vectors = num_vectors<T>(to.row_bytes);
  const auto rows = static_cast<int>(num_written_rows);
  if (format.kind == ActivationKind::Fp8Per128) {
    const auto blocks = static_cast<int>((vectors + kThreads - 1) / kThreads);
    launch_dependent(quantize_runs_kernel<T>, {.blocks = rows, .threads = kThreads, .blocks_y = blocks}, stream, x,
                     width, num_rows, to);
    return;
  }
  const float scale = format.kind == ActivationKind::Fp8Static ? format.static_scale : 0;
  const auto kernel = vectors <= 2 * kThreads   ? quantize_tokens_kernel<T, 2>
                      : vectors <= 4 * kThreads ? quantize_tokens_kernel<T, 4>
                                                : quantize_tokens_kernel<T, 14>;
  launch_dependent(kernel, {.blocks = rows, .threads = kThreads}, stream, x, width, num_rows, scale, to);
}

constexpr int kSumsPerThread = 8;

/// Grid: rows in x, runs of columns in y.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    scale_sums_kernel(const float* sums, std::int64_t sums_stride, const float* row_scale, const float* column_scale,
                      std::int64_t num_columns, Out* y, std::int64_t y_stride) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t row = blockIdx.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kThreads * kSumsPerThread + threadIdx.x;
  const float scale = row_scale == nullptr ? 1 : row_scale[row];
#pragma unroll
  for (int i = 0; i < kSumsPerThread; ++i) {
    const std::int64_t n = first + i * kThreads;
    if (n >= num_columns) return;
    const float column = column_scale == nullptr ? 1 : column_scale[n];
    y[row * y_stride + n] = static_cast<Out>(sums[row * sums_stride + n] * scale * column);
  }
}

}  // namespace

void quantize_fp8_rows(const Activation& x, std::int64_t first_row, std::int64_t num_rows,
                       std::int64_t num_written_rows, const ActivationFormat& format, const Fp8Rows& to,
                       cudaStream_t stream) {
  nibble::check(to.row_bytes % 16 == 0 && to.row_bytes >= x.width(), "cuda fp8: rows of codes in whole 16 bytes");
  if (num_written_rows == 0) return;
  with_float_type(x.format.kind, "fp8 activations", [&](auto element) {
    using T = decltype(element);
    quantize(device_data<T>(x) + first_row * x.width(), x.width(), num_rows, num_written_rows, format, to, stream);
  });
}

void scale_sums(const float* sums, std::int64_t sums_stride, const float* row_scale, const float* column_scale,
                std::int64_t num_rows, std::int64_t num_columns, const OutputColumns& y, cudaStream_t stream) {
  if (num_rows == 0) return;
  const std::int64_t per_block = kThreads * kSumsPerThread;
  const LaunchSize grid{.blocks = static_cast<int>(num_rows),
                        .threads = kThreads,
                        .blocks_y = static_cast<int>((num_columns + per_block - 1) / per_block)};
  with_float_type(y.kind, "fp8 sums", [&](auto out) {
    using Out = decltype(out);
    launch_dependent(scale_sums_kernel<Out>, grid, stream, sums, sums_stride, row_scale, column_scale, num_columns,
                     static_cast<Out*>(y.data), y.stride);
  });
}

}  // namespace nibble::backend::cuda
