#include "engine/kv_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/log.h"
#include "core/progress.h"
#include "engine/step.h"

namespace nibble::engine {
namespace {

// Of a tiny model; block ids beyond that serve nobody, and each costs the host some bytes.
constexpr std::int64_t kMaxBlocks = std::int64_t{1} << 20;

std::string bytes_text(std::int64_t bytes) {
  return format_bytes(static_cast<double>(bytes));
}

/// Bytes that this process may still take of a device's memory. Errors: OutOfMemory.
std::int64_t room_on_device(const EngineOptions& options, const backend::Memory& memory) {
  const auto share =
      static_cast<std::int64_t>(options.gpu_memory_utilization * static_cast<double>(memory.total_bytes));
  const std::int64_t room = share - memory.used_bytes - kCaptureBytes;
  if (room <= 0) {
    throw Error(
        ErrorCode::OutOfMemory,
        fmt::format("--gpu-memory-utilization {}: weights and one step take {}, the share is {} of {}; raise it, "
                    "lower --max-num-batched-tokens or take a smaller model",
                    options.gpu_memory_utilization, bytes_text(memory.used_bytes), bytes_text(share),
                    bytes_text(memory.total_bytes)));
  }
  if (room > memory.free_bytes) {
    const std::int64_t others = memory.total_bytes - memory.used_bytes - memory.free_bytes;
    throw Error(
        ErrorCode::OutOfMemory,
        fmt::format("--gpu-memory-utilization {}: other programs hold {} of the device's {}; give {:.2f} or less",
                    options.gpu_memory_utilization, bytes_text(others), bytes_text(memory.total_bytes),
                    static_cast<double>(memory.total_bytes - others) / static_cast<double>(memory.total_bytes)));
  }
  return room;
}

}  // namespace

void run_largest_step(models::Decoder& decoder, std::vector<backend::KvSpec> layers, const EngineOptions& options) {
  backend::Backend& backend = decoder.backend();
  const std::int64_t num_tokens = decoder.max_tokens();
  const std::int64_t num_sequences = std::min({options.max_num_seqs, decoder.max_logit_rows(), num_tokens});
  // All sequences write the same few blocks: what they compute is thrown away.
  const std::int64_t longest = (num_tokens + num_sequences - 1) / num_sequences;
  std::vector<std::int32_t> blocks(static_cast<std::size_t>((longest + options.block_size - 1) / options.block_size));
  std::iota(blocks.begin(), blocks.end(), 0);
  const auto cache =
      backend.make_kv_cache(std::move(layers), static_cast<std::int64_t>(blocks.size()), options.block_size);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(longest));
  StepBatch batch(options.block_size);
  for (std::int64_t s = 0; s < num_sequences; ++s) {
    batch.add(tokens, 0, num_tokens * (s + 1) / num_sequences - num_tokens * s / num_sequences, blocks);
    batch.want_logits(batch.num_tokens() - 1);
  }
  const std::vector<backend::SamplingRow> rows(static_cast<std::size_t>(num_sequences));
  std::vector<backend::SampledToken> sampled(rows.size());
  backend.sample(decoder.step(batch.view(), *cache, num_sequences), rows, sampled);
  backend.collect();
}

std::int64_t choose_num_blocks(std::int64_t block_bytes, std::int64_t max_model_len, const EngineOptions& options,
                               const backend::Memory& memory) {
  if (options.num_gpu_blocks_override > 0) return options.num_gpu_blocks_override;
  const std::int64_t blocks_per_sequence = (max_model_len + options.block_size - 1) / options.block_size;
  std::int64_t bytes = options.kv_cache_memory_bytes;
  std::int64_t most = blocks_per_sequence * options.max_num_seqs;
  if (bytes == 0 && memory.is_devices_own) {
    bytes = room_on_device(options, memory);
    most = std::max(most, kMaxBlocks);  // beyond the running sequences blocks keep prefixes
  } else if (bytes == 0) {
    bytes = memory.free_bytes / 4;
  }
  const std::int64_t num_blocks = std::min(bytes / block_bytes, most);
  if (num_blocks < 1) {
    throw Error(
        ErrorCode::OutOfMemory,
        fmt::format("KV cache: {} hold no block of {}; give a larger {}", bytes_text(bytes), bytes_text(block_bytes),
                    memory.is_devices_own && options.kv_cache_memory_bytes == 0 ? "--gpu-memory-utilization"
                                                                                : "--kv-cache-memory-bytes"));
  }
  return num_blocks;
}

}  // namespace nibble::engine
