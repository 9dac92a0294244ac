#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>
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

/// Memory of the current device, all of its users together: used_bytes is total less free.
Memory device_memory();

/// What a backend that found `used_at_start` bytes in use says of `now`: its own use is what came since, and its
/// context. What other programs hold is neither used nor free.
Memory memory_share(Memory now, std::int64_t used_at_start);

/// The error that ended the current context, after which every call fails; nothing while it works.
std::optional<std::string> device_fault();

/// Uninitialised memory on the current device. Errors: OutOfMemory with the size asked for.
Buffer device_buffer(std::size_t size_bytes);

/// Host memory that the GPU copies from by itself.
Buffer pinned_buffer(std::size_t size_bytes);

/// Copies a contiguous tensor to the current device and back; each waits for its own copy. `from` may be on the device
/// already (what Backend::quantize_to_fp8 left there).
Tensor to_device(TensorView from, cudaStream_t stream);
Tensor to_host(TensorView device, cudaStream_t stream);

}  // namespace nibble::backend::cuda
