#pragma once

#include <cstdint>
#include <span>

/// Log-probabilities from rows of f32 logits. Exponentials are f32 relative to the row's largest logit, where rounding
/// touches only terms that weigh nothing; sums and logarithms are f64.
namespace nibble::eval {

/// What a softmax over one row needs: p[i] = exp(logits[i] - max_logit) / sum.
struct RowSummary {
  float max_logit = 0;
  double sum = 0;
  std::int32_t top_token = 0;  // the lowest id wins a tie

  double log_sum_exp() const;
};

/// logits [vocab_size], not empty. A NaN anywhere makes `sum` NaN.
RowSummary summarize(std::span<const float> logits);

/// log p(token), in nats.
inline double log_prob(std::span<const float> logits, const RowSummary& summary, std::int32_t token) {
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - summary.log_sum_exp();
}

/// KL(p || q) = sum_i p[i] (log p[i] - log q[i]) in nats of two rows of the same length with their summaries.
/// Terms with p[i] = 0 count nothing; never negative.
double kl_divergence(std::span<const float> p_logits, const RowSummary& p, std::span<const float> q_logits,
                     const RowSummary& q);

}  // namespace nibble::eval
