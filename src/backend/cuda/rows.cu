#include "backend/cuda/rows.h"

#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;

/// Enough blocks for one thread an element.
unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

__device__ std::int64_t element_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

/// out[r] = table[rows[r]], one block a row.
template <class From, class To>
__global__ void gather_kernel(const From* table, const std::int32_t* rows, To* out, std::int64_t width) {
  const From* from = table + rows[blockIdx.x] * width;
  To* to = out + blockIdx.x * width;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) to[i] = static_cast<To>(static_cast<float>(from[i]));
}

template <class T>
__global__ void add_kernel(T* hidden, const T* delta, std::int64_t count) {
  const std::int64_t i = element_index();
  if (i < count) hidden[i] = static_cast<T>(static_cast<float>(hidden[i]) + static_cast<float>(delta[i]));
}

template <class T, class Out>
__global__ void silu_mul_kernel(const T* gate_up, Out* out, std::int64_t width, std::int64_t count) {
  const std::int64_t i = element_index();
  if (i >= count) return;
  const T* row = gate_up + i / width * 2 * width;
  const float gate = static_cast<float>(row[i % width]);
  const float up = static_cast<float>(row[width + i % width]);
  out[i] = static_cast<Out>(gate / (1.0F + __expf(-gate)) * up);
}

template <class T>
__global__ void add_bias_kernel(const float* bias, T* y, std::int64_t width, std::int64_t count) {
  const std::int64_t i = element_index();
  if (i < count) y[i] = static_cast<T>(static_cast<float>(y[i]) + bias[i % width]);
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
    with_float_type(hidden.format.kind, "embed", [&](auto to) {
      gather_kernel<<<static_cast<unsigned>(num_tokens), kThreads, 0, stream>>>(
          static_cast<const decltype(from)*>(table.view().data()), tokens, device_data<decltype(to)>(hidden),
          hidden.width());
    });
  });
  check(cudaGetLastError());
}

void add(Activation& hidden, const Activation& delta, cudaStream_t stream) {
  nibble::check(delta.format.kind == hidden.format.kind && delta.width() == hidden.width() &&
                    delta.num_tokens == hidden.num_tokens,
                "cuda add: delta is a matrix like hidden");
  const std::int64_t count = hidden.num_tokens * hidden.width();
  if (count == 0) return;
  with_float_type(hidden.format.kind, "add", [&](auto element) {
    using T = decltype(element);
    add_kernel<<<blocks_for(count), kThreads, 0, stream>>>(device_data<T>(hidden), device_data<T>(delta), count);
  });
  check(cudaGetLastError());
}

void silu_mul(const Activation& gate_up, Activation& out, cudaStream_t stream) {
  nibble::check(gate_up.width() == 2 * out.width() && out.capacity() >= gate_up.num_tokens,
                "cuda silu_mul: gate_up [num_tokens, 2 * width], out [num_tokens, width]");
  expect_natural_order(out, "silu_mul");
  out.num_tokens = gate_up.num_tokens;
  const std::int64_t count = out.num_tokens * out.width();
  if (count == 0) return;
  with_float_type(gate_up.format.kind, "silu_mul", [&](auto element) {
    with_float_type(out.format.kind, "silu_mul", [&](auto out_element) {
      silu_mul_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
          device_data<decltype(element)>(gate_up), device_data<decltype(out_element)>(out), out.width(), count);
    });
  });
  check(cudaGetLastError());
}

void gather_rows(const Activation& hidden, const std::int32_t* rows, std::int64_t num_rows, Activation& out,
                 cudaStream_t stream) {
  nibble::check(out.width() == hidden.width() && out.capacity() >= num_rows, "cuda gather_rows: out too small");
  out.num_tokens = num_rows;
  if (num_rows == 0) return;
  with_float_type(hidden.format.kind, "gather_rows", [&](auto element) {
    with_float_type(out.format.kind, "gather_rows", [&](auto out_element) {
      gather_kernel<<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(
          device_data<decltype(element)>(hidden), rows, device_data<decltype(out_element)>(out), hidden.width());
    });
  });
  check(cudaGetLastError());
}

void add_bias(const Tensor& bias, Activation& y, cudaStream_t stream) {
  nibble::check(bias.num_elements() == y.width(), "cuda add_bias: bias [width]");
  const std::int64_t count = y.num_tokens * y.width();
  if (count == 0) return;
  with_float_type(y.format.kind, "add_bias", [&](auto element) {
    add_bias_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const float*>(bias.view().data()),
                                                                device_data<decltype(element)>(y), y.width(), count);
  });
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
