#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Sampling on the device, with the meaning of host_sampling.h. The kernel's side; `Sampler` is the host's.
namespace nibble::backend::cuda {

/// The most log-probabilities a row gets on the device.
inline constexpr std::int32_t kMaxTopLogprobs = 1024;

/// Entries [begin, end) of a list that all rows share.
struct ListRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

/// A SamplingRow, its lists as ranges.
struct DeviceSamplingRow {
  float temperature = 1;
  float top_p = 1;
  float log_min_p = 0;  // where min_p > 0
  bool has_min_p = false;
  bool is_greedy = false;
  bool is_skipped = false;  // the host samples it
  std::int32_t top_k = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::uint64_t random_bits = 0;  // host_sampling.h
  ListRange counts;
  ListRange biases;
  ListRange banned;
  std::int64_t allowed = -1;       // first word of the mask; -1: all are allowed
  std::int32_t num_logprobs = -1;  // -1: none; at most kMaxTopLogprobs and vocab_size
  std::int32_t first_edit = 0;     // of the row's room in `raw`: counts, then biases, then banned
  std::int32_t first_top = 0;      // of the row's num_logprobs entries of `tops`
};

struct TokenBias {
  std::int32_t token = 0;
  float bias = 0;
};

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;
};

struct DeviceSampledToken {
  std::int32_t token = 0;
  float logprob = 0;
  std::int32_t is_finite = 1;
};

struct DeviceTokenCount {
  std::int32_t token = 0;
  std::int32_t in_prompt = 0;
  std::int32_t in_output = 0;
};

/// Everything on the device.
struct SamplingArguments {
  float* logits = nullptr;  // [num_rows, vocab_size]; rows with penalties, biases or banned tokens are changed
  std::int64_t num_rows = 0;
  std::int64_t vocab_size = 0;
  const DeviceSamplingRow* rows = nullptr;  // [num_rows]
  const DeviceTokenCount* counts = nullptr;
  const TokenBias* biases = nullptr;
  const std::int32_t* banned = nullptr;
  const std::uint32_t* allowed = nullptr;  // bit per token
  float* raw = nullptr;                    // logits as they were, of the tokens in the rows' lists
  DeviceSampledToken* sampled = nullptr;   // [num_rows]
  std::int32_t* tokens = nullptr;          // [num_rows], for the next step
  TokenLogprob* tops = nullptr;            // the best of each row, best first; token -1 where fewer are finite
};

/// Enqueues the sampling of every row.
void sample_rows(const SamplingArguments& arguments, cudaStream_t stream);

/// tokens[t] = sampled[rows[t]] where rows[t] is not negative.
void take_sampled_tokens(const std::int32_t* sampled, const std::int32_t* rows, std::int64_t num_tokens,
                         std::int32_t* tokens, cudaStream_t stream);

}  // namespace nibble::backend::cuda
