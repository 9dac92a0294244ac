#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {

/// One CUDA graph for each number of sequences that decodes are padded to: 1, 2, 4, then every 8th up to 256, every
/// 16th beyond, as vLLM has them. Recorded when a size is run first.
class StepGraphs final : public StepCapture {
 public:
  /// cache: the one whose steps are recorded.
  StepGraphs(const StepLimits& limits, const KvCache& cache);

  std::span<const std::int64_t> batch_sizes() const override { return batch_sizes_; }
  const KvCache& cache() const { return *cache_; }
  std::int64_t max_blocks_per_sequence() const { return max_blocks_per_sequence_; }
  /// The smallest recorded size that holds the batch; 0 where there is none.
  std::int64_t padded_size(std::int64_t num_sequences) const;

  /// Replays the graph of a size from batch_sizes(). Where it has none, or one of another generation, `body` runs as it
  /// is, which allocates whatever a first run allocates, and is then recorded. generation: counts every move of what
  /// kernels point to.
  void run(std::int64_t size, std::uint64_t generation, cudaStream_t stream, FunctionRef<void()> body);

 private:
  std::vector<std::int64_t> batch_sizes_;
  std::vector<GraphExec> graphs_;  // of each batch size; null: not recorded yet
  const KvCache* cache_;
  std::int64_t max_blocks_per_sequence_;
  std::uint64_t generation_ = 0;
};

}  // namespace nibble::backend::cuda
