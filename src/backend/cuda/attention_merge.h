#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/attention_schedule.h"

namespace nibble::backend::cuda {

/// Rows of results over parts of the context, and where they go.
struct PartialResults {
  const MergeRow* rows = nullptr;  // [num_rows] on the device
  std::int64_t num_rows = 0;
  const void* partials = nullptr;       // f16 [num_partials, num_heads, head_dim]
  const float* partial_sums = nullptr;  // [num_partials, num_heads] log2 of each part's sum of exponentials
  std::int32_t num_heads = 0;
  std::int32_t head_dim = 0;  // 64, 128 or 256
  void* out = nullptr;        // f16 [num_tokens, num_heads, head_dim]
};

/// out row = mean of its partial results, weighted by their sums, added in the order of the context; zeros where there
/// is none.
void merge_partials(const PartialResults& results, cudaStream_t stream);

}  // namespace nibble::backend::cuda
