#pragma once

#include <cstdint>
#include <random>

#include "engine/engine.h"

namespace nibble::apps {

/// Sequences of one length, all submitted at once.
struct BatchShape {
  std::int64_t batch_size = 1;
  std::int64_t input_len = 512;
  std::int64_t output_len = 128;
};

/// Medians over some batches.
struct BatchSpeed {
  double latency_seconds = 0;        // from submitting to the last token
  double prefill_tokens_per_s = 0;   // until every sequence has its first token
  double decode_tokens_per_s = 0;    // all sequences together, while all of them run; 0: there was no such time
  double decode_step_seconds = 0;    // likewise
  std::int64_t num_preemptions = 0;  // of all batches: the KV cache was too small for the shape
};

/// How often a batch is run: first some times unmeasured, which touches memory that later batches find in place.
struct BatchRepeats {
  std::int64_t warmup = 1;
  std::int64_t measured = 3;
};

/// Random prompts that share no prefix. Errors: as Engine::submit; Internal where a request fails.
BatchSpeed measure_batches(engine::Engine& engine, const BatchShape& shape, const BatchRepeats& repeats,
                           std::mt19937& random);

}  // namespace nibble::apps
