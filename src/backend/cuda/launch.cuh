#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "backend/cuda/handles.h"

/// Launches whose start overlaps the end of the kernel before (programmatic dependent launch).
namespace nibble::backend::cuda {

/// Until the kernels before this one in the stream are done: call it before reading what they write, and before writing
/// what they read or write. Whatever else a kernel reads, its weights say, may come before.
__device__ inline void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel may start its blocks of threads as soon as all of this one's have called this, or are done.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Of the device that the backend runs on; asked once, since every launch wants it.
inline int num_multiprocessors() {
  static const int count = [] {
    int device = 0;
    int found = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device));
    return found;
  }();
  return count;
}

/// Compute capability 9.0: wgmma is of no other.
inline bool has_warpgroup_products() {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
}

struct LaunchSize {
  int blocks = 1;
  int threads = 1;  // of a block
  int shared_bytes = 0;
  int blocks_y = 1;
};

/// Enqueues a kernel that calls wait_for_earlier_kernels().
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), const LaunchSize& size, cudaStream_t stream,
                      const Arguments&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(size.blocks), static_cast<unsigned>(size.blocks_y));
  config.blockDim = dim3(static_cast<unsigned>(size.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(size.shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = can_overlap_launches() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace nibble::backend::cuda
