#include "backend/cuda/rows.h"

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/vectors.cuh"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread a vector: rows along x, which may be many, vectors of a row along y.
LaunchSize vector_grid(std::int64_t num_rows, std::int64_t vectors) {
  const std::int64_t warps = (vectors + kWarpSize - 1) / kWarpSize;
  const std::int64_t threads = std::min<std::int64_t>(kThreads, warps * kWarpSize);
  return {.blocks = static_cast<int>(num_rows),
          .threads = static_cast<int>(threads),
          .blocks_y = static_cast<int>((vectors + threads - 1) / threads)};
}

__device__ std::int64_t vector_index() {
  return static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
}

/// out[r] = table[rows[r]]
template <class From, class To>
__global__ void gather_kernel(const From* table, const std::int32_t* rows, To* out, std::int64_t width) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t v = vector_index();
  if (v >= num_vectors<From>(width)) return;
  float values[kVectorSize<From>];
  load_run(table + rows[blockIdx.x] * width, v, width, values);
  store_run(out + blockIdx.x * width, v, width, values);
}

template <class T>
__global__ void add_kernel(T* hidden, const T* delta, std::int64_t width) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t row = blockIdx.x;
  const std::int64_t v = vector_index();
  if (v >= num_vectors<T>(width)) return;
  float values[kVectorSize<T>];
  float added[kVectorSize<T>];
  load_run(hidden + row * width, v, width, values);
  load_run(delta + row * width, v, width, added);
#pragma unroll
  for (int j = 0; j < kVectorSize<T>; ++j) values[j] += added[j];
  store_run(hidden + row * width, v, width, values);
}

template <class T, class Out>
__global__ void silu_mul_kernel(const T* gate_up, Out* out, std::int64_t width) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t row = blockIdx.x;
  const std::int64_t v = vector_index();
  if (v >= num_vectors<T>(width)) return;
  float gate[kVectorSize<T>];
  float up[kVectorSize<T>];
  load_run(gate_up + row * 2 * width, v, width, gate);
  load_run(gate_up + (row * 2 + 1) * width, v, width, up);
#pragma unroll
  for (int j = 0; j < kVectorSize<T>; ++j) gate[j] = gate[j] / (1.0F + __expf(-gate[j])) * up[j];
  store_run(out + row * width, v, width, gate);
}

template <class T>
__global__ void add_bias_kernel(const float* bias, T* y, std::int64_t width) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t row = blockIdx.x;
  const std::int64_t v = vector_index();
  if (v >= num_vectors<T>(width)) return;
  float values[kVectorSize<T>];
  float added[kVectorSize<T>];
  load_run(y + row * width, v, width, values);
  load_run(bias, v, width, added);
#pragma unroll
  for (int j = 0; j < kVectorSize<T>; ++j) values[j] += added[j];
  store_run(y + row * width, v, width, values);
}

void expect_natural_order(const Activation& out, const char* operation) {
  if (out.format.input_permutation.empty()) return;
  throw Error(ErrorCode::Unsupported,
              std::string("cuda ") + operation + ": act-order activations are not computed yet; use --device cpu");
}

}  // namespace

void embed(const Tensor& table, const std::int32_t* tokens, std::int64_t num_tokens, Activation& hidden,
           cudaStream_t stream) {
  nibble::check(hidden.capacity() >= num_tokens && hidden.width() == table.shape()[1], "cuda embed: hidden too small");
  hidden.num_tokens = num_tokens;
  if (num_tokens == 0) return;
  with_dtype(table.dtype(), "embed", [&](auto from) {
    const LaunchSize grid = vector_grid(num_tokens, num_vectors<decltype(from)>(hidden.width()));
    with_float_type(hidden.format.kind, "embed", [&](auto to) {
      launch_dependent(gather_kernel<decltype(from), decltype(to)>, grid, stream,
                       static_cast<const decltype(from)*>(table.view().data()), tokens,
                       device_data<decltype(to)>(hidden), hidden.width());
    });
  });
}

void add(Activation& hidden, const Activation& delta, cudaStream_t stream) {
  nibble::check(delta.format.kind == hidden.format.kind && delta.width() == hidden.width() &&
                    delta.num_tokens == hidden.num_tokens,
                "cuda add: delta is a matrix like hidden");
  if (hidden.num_tokens == 0) return;
  with_float_type(hidden.format.kind, "add", [&](auto element) {
    using T = decltype(element);
    const LaunchSize grid = vector_grid(hidden.num_tokens, num_vectors<T>(hidden.width()));
    launch_dependent(add_kernel<T>, grid, stream, device_data<T>(hidden), device_data<T>(delta), hidden.width());
  });
}

void silu_mul(const Activation& gate_up, Activation& out, cudaStream_t stream) {
  nibble::check(gate_up.width() == 2 * out.width() && out.capacity() >= gate_up.num_tokens,
                "cuda silu_mul: gate_up [num_tokens, 2 * width], out [num_tokens, width]");
  expect_natural_order(out, "silu_mul");
  out.num_tokens = gate_up.num_tokens;
  if (out.num_tokens == 0) return;
  with_float_type(gate_up.format.kind, "silu_mul", [&](auto element) {
    const LaunchSize grid = vector_grid(out.num_tokens, num_vectors<decltype(element)>(out.width()));
    with_float_type(out.format.kind, "silu_mul", [&](auto out_element) {
      launch_dependent(silu_mul_kernel<decltype(element), decltype(out_element)>, grid, stream,
                       device_data<decltype(element)>(gate_up), device_data<decltype(out_element)>(out), out.width());
    });
  });
}

void gather_rows(const Activation& hidden, const std::int32_t* rows, std::int64_t num_rows, Activation& out,
                 cudaStream_t stream) {
  nibble::check(out.width() == hidden.width() && out.capacity() >= num_rows, "cuda gather_rows: out too small");
  out.num_tokens = num_rows;
  if (num_rows == 0) return;
  with_float_type(hidden.format.kind, "gather_rows", [&](auto element) {
    const LaunchSize grid = vector_grid(num_rows, num_vectors<decltype(element)>(hidden.width()));
    with_float_type(out.format.kind, "gather_rows", [&](auto out_element) {
      launch_dependent(gather_kernel<decltype(element), decltype(out_element)>, grid, stream,
                       device_data<decltype(element)>(hidden), rows, device_data<decltype(out_element)>(out),
                       hidden.width());
    });
  });
}

void add_bias(const Tensor& bias, Activation& y, cudaStream_t stream) {
  nibble::check(bias.num_elements() == y.width(), "cuda add_bias: bias [width]");
  if (y.num_tokens == 0) return;
  with_float_type(y.format.kind, "add_bias", [&](auto element) {
    const LaunchSize grid = vector_grid(y.num_tokens, num_vectors<decltype(element)>(y.width()));
    launch_dependent(add_bias_kernel<decltype(element)>, grid, stream, static_cast<const float*>(bias.view().data()),
                     device_data<decltype(element)>(y), y.width());
  });
}

}  // namespace nibble::backend::cuda
