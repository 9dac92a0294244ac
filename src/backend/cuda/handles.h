#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <source_location>

/// CUDA resources as move-only values, and the one place where a status becomes an error.
namespace nibble::backend::cuda {

/// Errors: OutOfMemory for cudaErrorMemoryAllocation, Unavailable for a missing driver or device, else Internal;
/// with CUDA's sentence and the place of the call.
[[noreturn]] void throw_cuda_error(cudaError_t status, std::source_location at);

inline void check(cudaError_t status, std::source_location at = std::source_location::current()) {
  if (status != cudaSuccess) throw_cuda_error(status, at);
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const noexcept {
    destroy(handle);
  }
};
using Stream = std::unique_ptr<CUstream_st, Destroy<cudaStreamDestroy>>;

using Event = std::unique_ptr<CUevent_st, Destroy<cudaEventDestroy>>;

using Graph = std::unique_ptr<CUgraph_st, Destroy<cudaGraphDestroy>>;
using GraphExec = std::unique_ptr<CUgraphExec_st, Destroy<cudaGraphExecDestroy>>;

/// Whether the current device starts a kernel before the one before it has ended (launch.cuh).
bool can_overlap_launches();

/// A stream of the current device that does not wait for the default stream.
Stream make_stream();
/// An event that takes no time stamps; as if recorded already.
Event make_event();

}  // namespace nibble::backend::cuda
