#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/handles.h"
#include "backend/cuda/sampling.h"
#include "core/buffer.h"

namespace nibble::backend::cuda {

/// Samples rows of logits on the device and brings the tokens back later: two launches may be under way. A row that
/// asks for more than kMaxTopLogprobs log-probabilities is sampled on the host, which makes its launch wait.
class Sampler {
 public:
  explicit Sampler(cudaStream_t stream) : stream_(stream) {}

  /// Enqueues the sampling; `rows` and `out` stay in place until it is collected. Allocates where a step is larger than
  /// those before.
  void launch(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out);
  /// Waits for the oldest launch and fills its `out`.
  void collect();
  /// Tokens of the last launch on the device, row by row; null before the first.
  const std::int32_t* last_tokens() const { return last_tokens_; }

 private:
  /// One launch: what goes to the device in one copy and what comes back in one.
  struct Flight {
    Buffer host_inputs;   // pinned
    Buffer host_results;  // pinned
    Buffer inputs;
    Buffer results;
    Buffer tokens;
    Buffer raw;
    Event done;
    std::vector<DeviceSamplingRow> rows;
    std::span<SampledToken> out;
    std::size_t tops_place = 0;  // in the results
  };

  void sample_on_host(Flight& flight, Activation& logits, std::span<const SamplingRow> rows);

  cudaStream_t stream_;
  std::array<Flight, 2> flights_;
  std::size_t next_ = 0;          // flight of the next launch
  std::size_t num_launched_ = 0;  // and not collected
  const std::int32_t* last_tokens_ = nullptr;
};

}  // namespace nibble::backend::cuda
