#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eval/task.h"

namespace nibble::eval {

/// What a model may lose against its baseline. Nothing set: nothing is judged.
struct Thresholds {
  std::optional<double> accuracy_percent;               // every accuracy metric that is not named
  std::vector<std::pair<std::string, double>> percent;  // metric name → largest degradation in percent
  std::optional<double> max_kl;                         // nats

  bool is_empty() const { return !accuracy_percent && percent.empty() && !max_kl; }
};

/// "1.0" judges the accuracy metrics, "ppl=5,arc_easy=1" the named ones, "1,ppl=5" both; "" nothing.
/// Errors: InvalidArgument for what is no number of at least 0, or a name given twice.
Thresholds parse_thresholds(std::string_view max_degradation, std::optional<double> max_kl);

/// Before anything runs: every threshold must judge something.
/// Errors: InvalidArgument for a name that no metric has, or a threshold without a metric of its kind.
void check_thresholds(const Thresholds& thresholds, const std::vector<MetricSpec>& metrics);

/// How much worse than the baseline, in percent: (baseline - model) / baseline for accuracies, (model - baseline) /
/// baseline for perplexity; negative where the model is better. Nothing for KL and agreement, which are comparisons
/// already. `standard_error` comes from the paired samples, in percentage points.
struct Degradation {
  double percent = 0;
  double standard_error = 0;
};
std::optional<Degradation> degradation(const Metric& baseline, const Metric& model);

enum class Outcome : std::uint8_t { NotJudged, Accepted, Rejected };

/// "accepted", "rejected", "not judged"
std::string_view name(Outcome outcome);

/// One threshold applied: `value` is a degradation in percent, or the KL in nats.
struct Judgment {
  std::string metric;
  double value = 0;
  double standard_error = 0;
  double limit = 0;
  bool passed = false;  // value at most limit; a NaN does not pass
};

struct Verdict {
  Outcome outcome = Outcome::NotJudged;
  std::vector<Judgment> judgments;
};

/// The model's metrics against the baseline's, which are the same in the same order.
Verdict judge(const std::vector<Metric>& baseline, const std::vector<Metric>& model, const Thresholds& thresholds);

}  // namespace nibble::eval
