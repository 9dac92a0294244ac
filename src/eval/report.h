#pragma once

#include <string>

#include "core/json.h"
#include "eval/evaluate.h"

namespace nibble::eval {

/// The report for a person: one column a model, the baseline first, with what was lost against it; then each threshold
/// and its verdict. Ends with a newline.
std::string render_table(const Report& report);

/// The report for a program: `parameters` (how it was made) stands first; NaN becomes null.
///
///   {"parameters", "outcome", "models": [{"name", "is_baseline", "description", "checkpoint_bytes", "weight_bytes",
///     "bits_per_weight", "scored_tokens", "scoring_tokens_per_second", "decode_tokens_per_second",
///     "metrics": {NAME: {"value", "standard_error", "num_samples", "degradation_percent",
///                        "degradation_standard_error"}},
///     "verdict": {"outcome", "judgments": [{"metric", "value", "standard_error", "limit", "passed"}]}}],
///    "items": {TASK: [[item, …] a model]}}
///
/// Accuracies are fractions of 1, log-likelihoods are in nats.
Json to_json(const Report& report, const Json& parameters);

}  // namespace nibble::eval
