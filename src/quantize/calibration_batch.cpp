#include "quantize/calibration_batch.h"

#include <algorithm>
#include <cstddef>
#include <span>

namespace nibble::quantize {
namespace {

// Enough rows for the matrix products to run at full speed; a batch's activations stay small.
constexpr std::int64_t kBatchTokens = 2048;
constexpr std::int32_t kKvBlockSize = 16;

CalibrationBatch make_batch(std::span<const std::int32_t> tokens, std::int64_t seq_len) {
  CalibrationBatch batch;
  batch.tokens.assign(tokens.begin(), tokens.end());
  const auto num_sequences = static_cast<std::int64_t>(tokens.size()) / seq_len;
  batch.block_table_stride = (seq_len + kKvBlockSize - 1) / kKvBlockSize;
  for (std::int64_t s = 0; s < num_sequences; ++s) {
    batch.query_start.push_back(static_cast<std::int32_t>(s * seq_len));
    batch.context_len.push_back(static_cast<std::int32_t>(seq_len));
    for (std::int64_t b = 0; b < batch.block_table_stride; ++b) {
      batch.block_table.push_back(static_cast<std::int32_t>(s * batch.block_table_stride + b));
    }
    for (std::int64_t t = 0; t < seq_len; ++t) {
      batch.positions.push_back(static_cast<std::int32_t>(t));
      batch.slot_mapping.push_back(s * batch.block_table_stride * kKvBlockSize + t);
    }
  }
  batch.query_start.push_back(static_cast<std::int32_t>(tokens.size()));
  return batch;
}

}  // namespace

std::vector<CalibrationBatch> make_batches(const CalibrationSamples& samples) {
  const std::int64_t num_tokens = samples.num_samples * samples.seq_len;
  const std::int64_t batch_tokens = std::max<std::int64_t>(1, kBatchTokens / samples.seq_len) * samples.seq_len;
  const std::span<const std::int32_t> tokens(samples.tokens);
  std::vector<CalibrationBatch> batches;
  for (std::int64_t first = 0; first < num_tokens; first += batch_tokens) {
    const std::int64_t count = std::min(batch_tokens, num_tokens - first);
    batches.push_back(
        make_batch(tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), samples.seq_len));
  }
  return batches;
}

std::unique_ptr<backend::KvCache> make_batch_cache(backend::Backend& backend, const models::BlockSpec& spec,
                                                   const CalibrationBatch& largest) {
  const backend::KvSpec kv{.dtype = DType::F32,
                           .num_heads = spec.attention.num_heads,
                           .num_kv_heads = spec.attention.num_kv_heads,
                           .head_dim = spec.attention.head_dim,
                           .sliding_window = spec.attention.sliding_window};
  return backend.make_kv_cache({kv}, static_cast<std::int64_t>(largest.block_table.size()), kKvBlockSize);
}

backend::ForwardBatch CalibrationBatch::view() const {
  return {.tokens = tokens,
          .positions = positions,
          .query_start = query_start,
          .context_len = context_len,
          .block_table = block_table,
          .block_table_stride = block_table_stride,
          .slot_mapping = slot_mapping,
          .logit_rows = {}};
}

}  // namespace nibble::quantize
