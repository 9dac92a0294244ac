#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "models/block.h"
#include "quantize/calibration.h"

namespace nibble::quantize {

/// Whole calibration samples that go through a block together, as a forward batch with a KV block table of its own.
struct CalibrationBatch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> query_start;
  std::vector<std::int32_t> context_len;
  std::vector<std::int32_t> block_table;
  std::int64_t block_table_stride = 0;
  std::vector<std::int64_t> slot_mapping;

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(context_len.size()); }
  /// Views into this batch.
  backend::ForwardBatch view() const;
};

/// The samples in order, in batches of about 2048 tokens; the first batch is the largest.
std::vector<CalibrationBatch> make_batches(const CalibrationSamples& samples);

/// A cache for one layer of a block shaped like `spec` and one batch no larger than `largest`.
std::unique_ptr<backend::KvCache> make_batch_cache(backend::Backend& backend, const models::BlockSpec& spec,
                                                   const CalibrationBatch& largest);

}  // namespace nibble::quantize
