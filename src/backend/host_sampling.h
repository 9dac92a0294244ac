#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"

namespace nibble::backend {

/// Samples one row of f32 logits on the host, in the order that SamplingRow states. Deterministic: equal logits and row
/// give the same token on every machine. `logits` [vocab_size] is overwritten.
SampledToken sample_row(std::span<float> logits, const SamplingRow& row);

/// vLLM treats smaller temperatures as greedy: dividing by them overflows.
inline constexpr float kGreedyTemperature = 1e-5f;

/// The fraction of 2^64 that a draw takes, from (seed, position): 53 random bits, then zeros.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t position);

/// log(sum(exp(logits))), in f64 relative to the maximum.
double log_sum_exp(std::span<const float> logits);

/// The k best (token, log-probability), best first, ties by id.
std::vector<std::pair<std::int32_t, float>> top_logprobs(std::span<const float> logits, double log_sum, std::int32_t k);

}  // namespace nibble::backend
