#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/buffer.h"
#include "core/tensor.h"

/// Devices of this machine and memory on them.
namespace nibble::backend::cuda {

struct DeviceProperties {
  int index = 0;
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int compute_major = 0;
  int compute_minor = 0;
  std::size_t total_bytes = 0;
};

/// Every device that the driver shows. Errors: Unavailable where there is no driver or it is too old.
std::vector<DeviceProperties> list_devices();

/// Memory of the current device.
Memory device_memory();

/// Uninitialised memory on the current device. Errors: OutOfMemory with the size asked for.
Buffer device_buffer(std::size_t size_bytes);

/// Copies a contiguous tensor to the current device and back; each waits for its own copy.
Tensor to_device(TensorView host, cudaStream_t stream);
Tensor to_host(TensorView device, cudaStream_t stream);

}  // namespace nibble::backend::cuda
