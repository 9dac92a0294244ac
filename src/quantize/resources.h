#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/thread_pool.h"
#include "quantize/activation_stream.h"
#include "quantize/calibration.h"
#include "quantize/pipeline.h"
#include "quantize/plan.h"

namespace nibble::quantize {

/// What a run will take, from its shapes.
struct Resources {
  // Bytes of memory at the peak.
  std::int64_t block_memory = 0;   // one block and what quantizing its widest stage needs
  std::int64_t batch_memory = 0;   // activations of one batch, logits where the loss is needed
  std::int64_t hidden_memory = 0;  // the residual stream of all tokens
  std::int64_t input_memory = 0;   // the inputs of one stage of each width, of all tokens
  // Bytes of disk.
  std::int64_t output_disk = 0;   // the checkpoint
  std::int64_t scratch_disk = 0;  // states of the journal and of a backward pass
  std::int64_t widest_input = 0;  // of any linear
  double flops = 0;               // of matrix products

  /// With all activations in memory, and with all that can be in scratch files.
  std::int64_t most_memory() const { return least_memory() + hidden_memory + input_memory; }
  std::int64_t least_memory() const { return block_memory + batch_memory; }
};

Resources estimate_resources(const Plan& plan, const PipelineOptions& options);

/// Where the activations of a run with `max_memory` bytes go.
StreamStorage choose_storage(const Resources& resources, std::int64_t max_memory);

/// Before anything is written: says what the run will take (memory, disk, time), and refuses one that cannot end well.
/// `free_memory` bytes are what the machine has. Returns the memory that the run may use: --max-memory, or what is
/// free. Errors: OutOfMemory and Unavailable with the numbers and what to do.
std::int64_t preflight(const Resources& resources, const PipelineOptions& options, std::int64_t free_memory,
                       ThreadPool& pool);

}  // namespace nibble::quantize
