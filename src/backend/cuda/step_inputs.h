#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/handles.h"
#include "core/buffer.h"

namespace nibble::backend::cuda {

/// What kernels read of a ForwardBatch, on the device.
struct DeviceBatch {
  const std::int64_t* slot_mapping = nullptr;  // [num_tokens]
  const std::int32_t* tokens = nullptr;        // [num_tokens]
  const std::int32_t* positions = nullptr;     // [num_tokens]
  const std::int32_t* sequence_of = nullptr;   // [num_tokens]
  const std::int32_t* block_table = nullptr;   // [num_sequences, block_table_stride]
  const std::int32_t* logit_rows = nullptr;    // [num_logit_rows]
  std::int64_t block_table_stride = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_logit_rows = 0;
};

/// The batch of the step at work: one upload a step, from pinned memory. Grows to the largest step seen.
class StepInputs {
 public:
  StepInputs();

  /// Enqueues the upload. Waits only for the previous one.
  void upload(const ForwardBatch& batch, cudaStream_t stream);
  const DeviceBatch& batch() const { return batch_; }

 private:
  void reserve(std::size_t size_bytes);

  Buffer host_;  // pinned
  Buffer device_;
  Event uploaded_;  // host_ may be written again
  DeviceBatch batch_;
};

}  // namespace nibble::backend::cuda
