#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

/// What can only be looked at whole on the device: outputs of hundreds of megabytes.
namespace nibble::backend::test {

/// Fills memory with a NaN of every float dtype.
void poison(void* data, std::size_t size_bytes, cudaStream_t stream);

/// What `compare_outputs` counts.
struct OutputFaults {
  std::uint64_t not_finite = 0;  // elements of `first` that are poison still, infinite or NaN
  std::uint64_t different = 0;   // elements in which two runs differ, bit by bit
  std::uint64_t beyond = 0;      // bytes behind either output that are poison no longer
};

/// Over `num_elements` f16 (2 bytes) or f32 (4) of two runs and `guard_bytes` behind each. Waits.
OutputFaults compare_outputs(const void* first, const void* second, std::size_t num_elements, int element_bytes,
                             std::size_t guard_bytes, cudaStream_t stream);

}  // namespace nibble::backend::test
