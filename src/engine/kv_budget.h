#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "engine/engine.h"
#include "models/decoder.h"

/// How large the pool of KV blocks is.
namespace nibble::engine {

/// Runs a step as large as the options allow on a small cache of its own, so that whatever a backend allocates on first
/// use is there when memory is measured: workspaces, scratch, the kernels themselves. The decoder has reserved its
/// activations. Errors: OutOfMemory.
void run_largest_step(models::Decoder& decoder, std::vector<backend::KvSpec> layers, const EngineOptions& options);

/// --num-gpu-blocks-override, else --kv-cache-memory-bytes' worth, else what is right for the memory:
///
///   a device's own   gpu_memory_utilization * total less what this process uses; `memory` was measured after
///                    run_largest_step. What decode steps take that are recorded later is kept back: kCaptureBytes
///   the host's       a quarter of what is free, and no more than max_num_seqs sequences of max_model_len can fill:
///                    the rest of the machine keeps working (design.md §9)
///
/// Errors: OutOfMemory with the numbers, naming the flag: where not one block fits, where other programs hold what the
/// share asks for.
std::int64_t choose_num_blocks(std::int64_t block_bytes, std::int64_t max_model_len, const EngineOptions& options,
                               const backend::Memory& memory);

/// One CUDA graph of an 80-layer model has a thousand nodes and takes a few MB; there are some twenty.
inline constexpr std::int64_t kCaptureBytes = std::int64_t{256} << 20;

}  // namespace nibble::engine
