#include <cuda_runtime.h>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "sweep_checks.cuh"

namespace nibble::backend::test {
namespace {

constexpr int kPoison = 0xff;
constexpr unsigned kBlocks = 1024;
constexpr unsigned kThreads = 256;

/// Counts go through integer atomics, whose order does not matter.
template <class Bits>
__global__ void compare_kernel(const Bits* first, const Bits* second, std::size_t count, Bits exponent,
                               OutputFaults* faults) {
  std::uint64_t not_finite = 0;
  std::uint64_t different = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    not_finite += (first[i] & exponent) == exponent;
    different += first[i] != second[i];
  }
  if (not_finite > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&faults->not_finite), not_finite);
  if (different > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&faults->different), different);
}

__global__ void guard_kernel(const std::uint8_t* guard, std::size_t count, OutputFaults* faults) {
  std::uint64_t written = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    written += guard[i] != kPoison;
  }
  if (written > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&faults->beyond), written);
}

}  // namespace

void poison(void* data, std::size_t size_bytes, cudaStream_t stream) {
  cuda::check(cudaMemsetAsync(data, kPoison, size_bytes, stream));
}

OutputFaults compare_outputs(const void* first, const void* second, std::size_t num_elements, int element_bytes,
                             std::size_t guard_bytes, cudaStream_t stream) {
  Buffer counts = cuda::device_buffer(sizeof(OutputFaults));
  auto* faults = static_cast<OutputFaults*>(counts.data());
  cuda::check(cudaMemsetAsync(faults, 0, sizeof(OutputFaults), stream));
  if (element_bytes == 2) {
    compare_kernel<std::uint16_t><<<kBlocks, kThreads, 0, stream>>>(static_cast<const std::uint16_t*>(first),
                                                                    static_cast<const std::uint16_t*>(second),
                                                                    num_elements, 0x7c00u, faults);
  } else {
    compare_kernel<std::uint32_t><<<kBlocks, kThreads, 0, stream>>>(static_cast<const std::uint32_t*>(first),
                                                                    static_cast<const std::uint32_t*>(second),
                                                                    num_elements, 0x7f800000u, faults);
  }
  for (const void* output : {first, second}) {
    const auto* guard =
        static_cast<const std::uint8_t*>(output) + num_elements * static_cast<std::size_t>(element_bytes);
    guard_kernel<<<kBlocks, kThreads, 0, stream>>>(guard, guard_bytes, faults);
  }
  cuda::check(cudaGetLastError());
  OutputFaults found;
  cuda::check(cudaMemcpyAsync(&found, faults, sizeof found, cudaMemcpyDeviceToHost, stream));
  cuda::check(cudaStreamSynchronize(stream));
  return found;
}

}  // namespace nibble::backend::test
