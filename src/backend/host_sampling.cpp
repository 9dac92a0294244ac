#include "backend/host_sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::backend {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Candidate {
  float logit;
  std::int32_t token;
};

bool is_better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

bool has_nan(std::span<const float> logits) {
  return std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
}

void apply_penalties(std::span<float> logits, const SamplingRow& row) {
  for (const TokenCount& count : row.counts) {
    float& logit = logits[static_cast<std::size_t>(count.token)];
    if (count.in_prompt + count.in_output > 0 && row.repetition_penalty != 1) {
      logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    }
    if (count.in_output > 0) {
      logit -= row.presence_penalty + row.frequency_penalty * static_cast<float>(count.in_output);
    }
  }
}

void apply_masks(std::span<float> logits, const SamplingRow& row) {
  for (const auto& [token, bias] : row.logit_bias) logits[static_cast<std::size_t>(token)] += bias;
  for (const std::int32_t token : row.banned) logits[static_cast<std::size_t>(token)] = kMinusInfinity;
  if (row.allowed_mask.empty()) return;
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (((row.allowed_mask[token / 32] >> (token % 32)) & 1u) == 0) logits[token] = kMinusInfinity;
  }
}

std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Keeps the smallest best-first prefix of `candidates` whose probability reaches `top_p`. Only as much is sorted as
/// is needed: most rows are decided by a few hundred tokens.
void keep_top_p(std::vector<Candidate>& candidates, float top_p, float max_logit) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += std::exp(static_cast<double>(candidate.logit - max_logit));
  double mass = 0;
  std::size_t kept = 0;
  for (std::size_t sorted = 0; sorted < candidates.size();) {
    const std::size_t end = std::min(candidates.size(), sorted == 0 ? std::size_t{256} : sorted * 8);
    std::partial_sort(candidates.begin() + static_cast<std::ptrdiff_t>(sorted),
                      candidates.begin() + static_cast<std::ptrdiff_t>(end), candidates.end(), is_better);
    sorted = end;
    for (; kept < sorted; ++kept) {
      if (mass >= static_cast<double>(top_p) * total) {
        candidates.resize(std::max<std::size_t>(kept, 1));
        return;
      }
      mass += std::exp(static_cast<double>(candidates[kept].logit - max_logit));
    }
  }
}

std::int32_t draw(const std::vector<Candidate>& candidates, float max_logit, double u) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += std::exp(static_cast<double>(candidate.logit - max_logit));
  double left = u * total;
  for (const Candidate& candidate : candidates) {
    left -= std::exp(static_cast<double>(candidate.logit - max_logit));
    if (left < 0) return candidate.token;
  }
  return candidates.back().token;
}

std::int32_t sample_candidates(std::span<float> logits, const SamplingRow& row) {
  float max_logit = kMinusInfinity;
  for (float& logit : logits) {
    logit /= row.temperature;
    max_logit = std::max(max_logit, logit);
  }
  const float floor = row.min_p > 0 ? max_logit + std::log(row.min_p) : kMinusInfinity;
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (logits[token] > kMinusInfinity && logits[token] >= floor) {
      candidates.push_back({logits[token], static_cast<std::int32_t>(token)});
    }
  }
  if (row.top_k > 0 && static_cast<std::size_t>(row.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + row.top_k, candidates.end(), is_better);
    candidates.resize(static_cast<std::size_t>(row.top_k));
    std::sort(candidates.begin(), candidates.end(), is_better);
  }
  if (row.top_p < 1) keep_top_p(candidates, row.top_p, max_logit);
  return draw(candidates, max_logit, static_cast<double>(random_bits(row.seed, row.position)) * 0x1p-64);
}

}  // namespace

// Two rounds of the splitmix64 finaliser.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t position) {
  const auto mix = [](std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return mix(mix(seed) ^ position) >> 11 << 11;
}

double log_sum_exp(std::span<const float> logits) {
  const float max_logit = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - max_logit));
  return max_logit + std::log(sum);
}

std::vector<std::pair<std::int32_t, float>> top_logprobs(std::span<const float> logits, double log_sum,
                                                         std::int32_t k) {
  std::vector<Candidate> candidates(logits.size());
  for (std::size_t token = 0; token < logits.size(); ++token) {
    candidates[token] = {logits[token], static_cast<std::int32_t>(token)};
  }
  const auto count = std::min<std::size_t>(static_cast<std::size_t>(std::max(k, 0)), logits.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count), candidates.end(),
                    is_better);
  std::vector<std::pair<std::int32_t, float>> best(count);
  for (std::size_t i = 0; i < count; ++i) {
    best[i] = {candidates[i].token, static_cast<float>(candidates[i].logit - log_sum)};
  }
  return best;
}

SampledToken sample_row(std::span<float> logits, const SamplingRow& row) {
  SampledToken sampled;
  if (has_nan(logits)) {
    sampled.is_finite = false;
    return sampled;
  }
  const bool wants_logprobs = row.num_logprobs >= 0;
  std::vector<float> raw;
  double log_sum = 0;
  if (wants_logprobs) {
    raw.assign(logits.begin(), logits.end());
    log_sum = log_sum_exp(raw);
    sampled.top_logprobs = top_logprobs(raw, log_sum, row.num_logprobs);
  }
  apply_penalties(logits, row);
  apply_masks(logits, row);
  const std::int32_t best = argmax(logits);
  if (!std::isfinite(logits[static_cast<std::size_t>(best)])) {  // overflow, or every token is banned
    sampled.is_finite = false;
    return sampled;
  }
  sampled.token = row.temperature < kGreedyTemperature ? best : sample_candidates(logits, row);
  if (wants_logprobs) sampled.logprob = static_cast<float>(raw[static_cast<std::size_t>(sampled.token)] - log_sum);
  return sampled;
}

}  // namespace nibble::backend
