#include <cmath>
#include <cstdint>

#include "backend/cuda/handles.h"
#include "backend/cuda/sampling.h"
#include "backend/cuda/sampling_select.cuh"
#include "core/error.h"

// Regime: 1 … 1024 rows of 256 … 256k f32 logits, which the L2 cache holds since lm_head wrote them; a block a row.
// Greedy reads a row once; temperature twice; top_k and top_p add a pass each, and one that collects a few hundred
// candidates for each question asked. An SM reads 64 bytes a cycle from L2: 4 µs a pass over 128k logits.

namespace nibble::backend::cuda {
namespace {

/// A token's logit as it takes part in the draw: -infinity where it does not.
struct Scores {
  const float* logits;
  const std::uint32_t* allowed;  // null: all
  float temperature;             // 1: not divided
  float floor;                   // of scores, -infinity: none

  __device__ float operator()(std::int64_t token) const {
    float score = logits[token];
    if (allowed != nullptr && ((allowed[token / 32] >> (token % 32)) & 1u) == 0) return -INFINITY;
    if (temperature != 1.0F) score = __fdiv_rn(score, temperature);
    return score < floor ? -INFINITY : score;  // a NaN stays one
  }
};

/// The best token, as a composite of select.cuh, and whether a NaN was seen.
struct Best {
  std::uint64_t composite = 0;
  bool has_nan = false;
  __device__ float score() const { return score_of_key(key_of_composite(composite)); }
  __device__ std::int32_t token() const { return token_of_composite(composite); }
};

__device__ Best find_best(const Scores& scores, std::int64_t vocab_size, SelectStorage& shared) {
  std::uint64_t best = 0;
  bool has_nan = false;
  for (std::int64_t token = threadIdx.x; token < vocab_size; token += kSelectThreads) {
    const float score = scores(token);
    has_nan = has_nan || isnan(score);
    best = max(best, composite_of(score, static_cast<std::int32_t>(token)));
  }
  has_nan = __syncthreads_or(has_nan) != 0;
  return {block_max(best, shared), has_nan};
}

/// The lists of one row.
struct Edits {
  const DeviceSamplingRow& row;
  const SamplingArguments& all;
  float* logits;

  __device__ std::int32_t num_counts() const { return row.counts.end - row.counts.begin; }
  __device__ std::int32_t num_biases() const { return row.biases.end - row.biases.begin; }
  __device__ std::int32_t size() const { return num_counts() + num_biases() + row.banned.end - row.banned.begin; }
  __device__ std::int32_t token(std::int32_t i) const {
    if (i < num_counts()) return all.counts[row.counts.begin + i].token;
    i -= num_counts();
    if (i < num_biases()) return all.biases[row.biases.begin + i].token;
    return all.banned[row.banned.begin + i - num_biases()];
  }

  __device__ void keep_raw() const {
    for (std::int32_t i = threadIdx.x; i < size(); i += kSelectThreads) all.raw[row.first_edit + i] = logits[token(i)];
    __syncthreads();
  }

  /// Before the edits. The token may be in several lists, which then agree.
  __device__ float raw_logit(std::int32_t sampled, SelectStorage& shared) const {
    if (threadIdx.x == 0) shared.score = logits[sampled];
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < size(); i += kSelectThreads) {
      if (token(i) == sampled) shared.score = all.raw[row.first_edit + i];
    }
    __syncthreads();
    return shared.score;
  }

  /// Products and sums are rounded one by one, as on the host.
  __device__ void apply() const {
    for (std::int32_t i = threadIdx.x; i < num_counts(); i += kSelectThreads) {  // each token once
      const DeviceTokenCount count = all.counts[row.counts.begin + i];
      float logit = logits[count.token];
      if (count.in_prompt + count.in_output > 0 && row.repetition_penalty != 1.0F) {
        logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
      }
      if (count.in_output > 0) {
        const float by_count = __fmul_rn(row.frequency_penalty, static_cast<float>(count.in_output));
        logit = __fsub_rn(logit, __fadd_rn(row.presence_penalty, by_count));
      }
      logits[count.token] = logit;
    }
    __syncthreads();
    for (std::int32_t i = row.biases.begin + static_cast<std::int32_t>(threadIdx.x); i < row.biases.end;
         i += kSelectThreads) {
      add_biases(i);
    }
    __syncthreads();
    for (std::int32_t i = row.banned.begin + static_cast<std::int32_t>(threadIdx.x); i < row.banned.end;
         i += kSelectThreads) {
      logits[all.banned[i]] = -INFINITY;
    }
    __syncthreads();
  }

 private:
  /// All biases of the token of entry i, in order, where it is the token's first.
  __device__ void add_biases(std::int32_t i) const {
    const std::int32_t token = all.biases[i].token;
    for (std::int32_t j = row.biases.begin; j < i; ++j) {
      if (all.biases[j].token == token) return;
    }
    float logit = logits[token];
    for (std::int32_t j = i; j < row.biases.end; ++j) {
      if (all.biases[j].token == token) logit = __fadd_rn(logit, all.biases[j].bias);
    }
    logits[token] = logit;
  }
};

/// Writes the best log-probabilities of a row; returns log(sum(exp(logits))).
__device__ double write_top_logprobs(const Scores& raw, std::int64_t vocab_size, float max_logit, std::int32_t count,
                                     TokenLogprob* tops, SelectStorage& shared) {
  Selector<Scores> selector(raw, vocab_size, max_logit, shared);
  const double log_sum = max_logit + log(static_cast<double>(selector.total_mass()) / kMassOne);
  const auto num_candidates = static_cast<std::int32_t>(selector.total_count());
  for (std::int32_t i = num_candidates + static_cast<std::int32_t>(threadIdx.x); i < count; i += kSelectThreads) {
    tops[i] = {-1, -INFINITY};
  }
  count = min(count, num_candidates);
  if (count == 0) return log_sum;
  const std::uint64_t last = selector.by_count(static_cast<std::uint32_t>(count - 1)).composite;
  const std::uint64_t* best = selector.sorted_down_to(last);
  for (std::int32_t i = threadIdx.x; i < count; i += kSelectThreads) {
    const float logit = score_of_key(key_of_composite(best[i]));
    tops[i] = {token_of_composite(best[i]), static_cast<float>(logit - log_sum)};
  }
  __syncthreads();
  return log_sum;
}

/// host_sampling.cpp's sample_candidates: best-first draws where top_k or top_p leave something out, else by id.
__device__ std::int32_t draw(const Scores& scores, std::int64_t vocab_size, float max_score,
                             const DeviceSamplingRow& row, SelectStorage& shared) {
  if (row.top_k <= 0 && row.top_p >= 1.0F) return draw_by_id(scores, vocab_size, max_score, row.random_bits, shared);
  Selector<Scores> selector(scores, vocab_size, max_score, shared);
  std::uint64_t mass = selector.total_mass();
  const bool cuts_by_count = row.top_k > 0 && static_cast<std::uint32_t>(row.top_k) < selector.total_count();
  if (!cuts_by_count && row.top_p >= 1.0F) {
    return draw_by_id(scores, vocab_size, max_score, row.random_bits, shared);
  }
  if (cuts_by_count) mass = selector.by_count(static_cast<std::uint32_t>(row.top_k - 1)).mass_up_to;
  if (row.top_p < 1.0F) {
    // Tokens are kept while the mass before them is below the limit; the first always is.
    const double limit = ceil(static_cast<double>(row.top_p) * static_cast<double>(mass));
    mass = selector.by_mass(limit < 1 ? 0 : static_cast<std::uint64_t>(limit) - 1).mass_up_to;
  }
  return token_of_composite(selector.by_mass(__umul64hi(row.random_bits, mass)).composite);
}

__global__ void __launch_bounds__(kSelectThreads) sample_kernel(SamplingArguments all) {
  __shared__ SelectStorage shared;
  const DeviceSamplingRow row = all.rows[blockIdx.x];
  if (row.is_skipped) return;
  float* logits = all.logits + blockIdx.x * all.vocab_size;
  const Edits edits{row, all, logits};
  const bool has_edits = edits.size() > 0;
  const Scores raw{logits, nullptr, 1.0F, -INFINITY};

  DeviceSampledToken sampled{0, 0.0F, 0};
  Best best = find_best(raw, all.vocab_size, shared);
  const bool is_number = !best.has_nan && isfinite(best.score());
  double log_sum = 0;
  if (is_number && row.num_logprobs >= 0) {
    log_sum = write_top_logprobs(raw, all.vocab_size, best.score(), row.num_logprobs, all.tops + row.first_top, shared);
  }
  if (is_number && has_edits) {
    if (row.num_logprobs >= 0) edits.keep_raw();
    edits.apply();
  }
  const std::uint32_t* allowed = row.allowed < 0 ? nullptr : all.allowed + row.allowed;
  if (is_number && (has_edits || allowed != nullptr)) {
    best = find_best({logits, allowed, 1.0F, -INFINITY}, all.vocab_size, shared);
  }
  if (is_number && isfinite(best.score())) {
    sampled.is_finite = 1;
    sampled.token = best.token();
    if (!row.is_greedy) {
      const float max_score = __fdiv_rn(best.score(), row.temperature);
      const float floor = row.has_min_p ? __fadd_rn(max_score, row.log_min_p) : -INFINITY;
      sampled.token = draw({logits, allowed, row.temperature, floor}, all.vocab_size, max_score, row, shared);
    }
    if (row.num_logprobs >= 0) {
      sampled.logprob = static_cast<float>(edits.raw_logit(sampled.token, shared) - log_sum);
    }
  }
  if (threadIdx.x == 0) {
    all.sampled[blockIdx.x] = sampled;
    all.tokens[blockIdx.x] = sampled.token;
  }
}

constexpr int kTakeThreads = 256;

__global__ void take_sampled_kernel(const std::int32_t* sampled, const std::int32_t* rows, std::int64_t num_tokens,
                                    std::int32_t* tokens) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kTakeThreads + threadIdx.x;
  if (t < num_tokens && rows[t] >= 0) tokens[t] = sampled[rows[t]];
}

}  // namespace

void sample_rows(const SamplingArguments& arguments, cudaStream_t stream) {
  if (arguments.num_rows == 0) return;
  sample_kernel<<<static_cast<unsigned>(arguments.num_rows), kSelectThreads, 0, stream>>>(arguments);
  check(cudaGetLastError());
}

void take_sampled_tokens(const std::int32_t* sampled, const std::int32_t* rows, std::int64_t num_tokens,
                         std::int32_t* tokens, cudaStream_t stream) {
  if (num_tokens == 0) return;
  take_sampled_kernel<<<static_cast<unsigned>((num_tokens + kTakeThreads - 1) / kTakeThreads), kTakeThreads, 0,
                        stream>>>(sampled, rows, num_tokens, tokens);
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
