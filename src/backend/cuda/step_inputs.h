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
  const std::int64_t* slot_mapping = nullptr;  // [num_tokens]; -1: of padding, nothing is written
  std::int32_t* tokens = nullptr;              // [num_tokens]; those of sampled_rows come from the last sampling
  const std::int32_t* sampled_rows = nullptr;  // [num_tokens], or null
  const std::int32_t* positions = nullptr;     // [num_tokens]
  const std::int32_t* sequence_of = nullptr;   // [num_tokens]
  const std::int32_t* query_start = nullptr;   // [num_sequences + 1]
  const std::int32_t* context_len = nullptr;   // [num_sequences]; 0: of padding
  const std::int32_t* logit_rows = nullptr;    // [num_logit_rows]
  const std::int32_t* block_table = nullptr;   // [num_sequences, block_table_stride]
  std::int64_t block_table_stride = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_sequences = 0;
  std::int64_t num_logit_rows = 0;
};

/// The batch of the step at work, padded to a recorded size where one is asked for: one upload a step, from pinned
/// memory. A batch of decodes padded to one size lies at the same addresses in every step, as long as `generation`
/// stays.
class StepInputs {
 public:
  StepInputs();

  /// Room for steps up to these limits; larger ones make it grow, which moves it.
  void reserve(const StepLimits& limits);
  /// Enqueues the upload of a batch as it is. Waits only for the previous upload.
  void upload(const ForwardBatch& batch, cudaStream_t stream) { upload(batch, 0, batch.block_table_stride, stream); }
  /// The same of decodes, one token and logit row a sequence, padded to num_sequences by sequences of token 0, position
  /// 0, no context and slot -1; the block table's rows as far apart as said.
  void upload_padded(const ForwardBatch& batch, std::int64_t num_sequences, std::int64_t block_table_stride,
                     cudaStream_t stream) {
    upload(batch, num_sequences, block_table_stride, stream);
  }

  const DeviceBatch& batch() const { return batch_; }
  /// The same, padding included, as host code plans it; in place until the next upload.
  const ForwardBatch& host_batch() const { return host_batch_; }
  /// Tokens of the uploaded batch itself.
  std::int64_t num_real_tokens() const { return num_real_tokens_; }
  /// Changes when the device's copy moves.
  std::uint64_t generation() const { return generation_; }

 private:
  void reserve(std::size_t size_bytes);
  void upload(const ForwardBatch& batch, std::int64_t padded_size, std::int64_t block_table_stride,
              cudaStream_t stream);

  Buffer host_;  // pinned
  Buffer device_;
  Event uploaded_;  // host_ may be written again
  DeviceBatch batch_;
  ForwardBatch host_batch_;
  std::int64_t num_real_tokens_ = 0;
  std::uint64_t generation_ = 0;
};

}  // namespace nibble::backend::cuda
