#include "eval/log_probs.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/error.h"

namespace nibble::eval {

double RowSummary::log_sum_exp() const {
  return static_cast<double>(max_logit) + std::log(sum);
}

RowSummary summarize(std::span<const float> logits) {
  check(!logits.empty(), "a row of logits has at least one column");
  RowSummary summary;
  const auto top = std::max_element(logits.begin(), logits.end());
  summary.max_logit = *top;
  summary.top_token = static_cast<std::int32_t>(top - logits.begin());
  for (const float logit : logits) summary.sum += static_cast<double>(std::exp(logit - summary.max_logit));
  return summary;
}

double kl_divergence(std::span<const float> p_logits, const RowSummary& p, std::span<const float> q_logits,
                     const RowSummary& q) {
  check(p_logits.size() == q_logits.size(), "both rows are over the same vocabulary");
  // KL = sum p (a - b) - (lse(a) - lse(b)): the same exponentials weigh the terms and normalise them, so the weights
  // add up to one and a shift between the two rows cancels.
  double weighted = 0;
  for (std::size_t i = 0; i < p_logits.size(); ++i) {
    const float weight = std::exp(p_logits[i] - p.max_logit);
    if (weight == 0) continue;  // also keeps -inf - -inf of a masked token out
    weighted += static_cast<double>(weight) * (static_cast<double>(p_logits[i]) - static_cast<double>(q_logits[i]));
  }
  const double divergence = weighted / p.sum - (p.log_sum_exp() - q.log_sum_exp());
  return divergence < 0 ? 0 : divergence;  // rounding; NaN stays NaN
}

}  // namespace nibble::eval
