#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "backend/cuda/handles.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "weights/linear_weights.h"

namespace nibble::backend::cuda {

using PinnedMemory = std::unique_ptr<std::byte, Destroy<cudaFreeHost>>;

/// Sends weights to the device through two pinned buffers: the pool's threads fill one while the other is on its way.
/// Copies are enqueued on the stream; the host's memory may go when a call returns. On an H100 it reaches 35 to 48 GB/s
/// from the heap and from a mapped file, where copies from pageable memory reach 7.5. One thread calls it.
class Uploader {
 public:
  /// Both outlive the uploader.
  Uploader(ThreadPool& pool, cudaStream_t stream) : pool_(pool), stream_(stream) {}
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  cudaStream_t stream() const { return stream_; }

  /// A contiguous host tensor on the device. Errors: OutOfMemory.
  Tensor upload(TensorView host);
  /// A float one in another float dtype, converted there. Waits for the device where that may fail.
  /// Errors: Unsupported where a value lies beyond f16's range; OutOfMemory.
  Tensor upload_as(TensorView host, DType dtype);
  /// What is large of a linear's parts: codes, and float weights in `dtype`. The rest stays on the host.
  void upload(std::vector<weights::LinearPart>& parts, DType dtype);

 private:
  void copy_staged(std::byte* to, const std::byte* from, std::size_t size_bytes);

  ThreadPool& pool_;
  cudaStream_t stream_;
  std::array<PinnedMemory, 2> staging_;  // allocated on first use
  std::array<Event, 2> sent_;            // a buffer may be filled again
  std::size_t next_ = 0;
};

}  // namespace nibble::backend::cuda
