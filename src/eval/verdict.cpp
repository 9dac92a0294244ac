#include "eval/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/error.h"
#include "eval/statistics.h"
#include "eval/task.h"

namespace nibble::eval {
namespace {

double parse_limit(std::string_view text) {
  double limit = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(limit) || limit < 0) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("--max-degradation: \"{}\" is no percentage of at least 0; write 1.0 or ppl=5,arc_easy=1", text));
  }
  return limit;
}

void add_threshold(std::string_view part, Thresholds& thresholds) {
  const auto equals = part.find('=');
  if (equals == std::string_view::npos) {
    if (thresholds.accuracy_percent) {
      throw Error(ErrorCode::InvalidArgument, "--max-degradation: two thresholds for all accuracy tasks; give one");
    }
    thresholds.accuracy_percent = parse_limit(part);
    return;
  }
  const std::string metric(part.substr(0, equals));
  const auto is_same = [&](const auto& threshold) { return threshold.first == metric; };
  if (std::ranges::any_of(thresholds.percent, is_same)) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--max-degradation: {} is named twice", metric));
  }
  thresholds.percent.emplace_back(metric, parse_limit(part.substr(equals + 1)));
}

std::string names_of(const std::vector<MetricSpec>& metrics) {
  std::string names;
  for (const MetricSpec& spec : metrics) {
    if (spec.kind != MetricKind::Accuracy && spec.kind != MetricKind::Perplexity) continue;
    names += names.empty() ? spec.name : ", " + spec.name;
  }
  return names.empty() ? "none" : names;
}

bool has_kind(const std::vector<MetricSpec>& metrics, MetricKind kind) {
  return std::ranges::any_of(metrics, [kind](const MetricSpec& spec) { return spec.kind == kind; });
}

/// Largest degradation in percent allowed to this metric, if it is judged.
std::optional<double> percent_limit(const MetricSpec& spec, const Thresholds& thresholds) {
  for (const auto& [metric, limit] : thresholds.percent) {
    if (metric == spec.name) return limit;
  }
  return spec.kind == MetricKind::Accuracy ? thresholds.accuracy_percent : std::nullopt;
}

std::optional<Judgment> judge_metric(const Metric& baseline, const Metric& model, const Thresholds& thresholds) {
  Judgment judgment;
  judgment.metric = model.spec.name;
  if (model.spec.kind == MetricKind::Divergence) {
    if (!thresholds.max_kl) return std::nullopt;
    judgment.value = model.value();
    judgment.standard_error = model.standard_error();
    judgment.limit = *thresholds.max_kl;
  } else {
    const auto limit = percent_limit(model.spec, thresholds);
    const auto loss = degradation(baseline, model);
    if (!limit || !loss) return std::nullopt;
    judgment.value = loss->percent;
    judgment.standard_error = loss->standard_error;
    judgment.limit = *limit;
  }
  // 95 of 100 against 100 of 100 is 5.000000000000004 % in f64: rounding fails nobody.
  judgment.passed = judgment.value <= judgment.limit + 1e-9;
  return judgment;
}

}  // namespace

Thresholds parse_thresholds(std::string_view max_degradation, std::optional<double> max_kl) {
  Thresholds thresholds;
  if (max_kl && !(*max_kl >= 0)) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--max-kl: {} is no number of at least 0", *max_kl));
  }
  thresholds.max_kl = max_kl;
  if (max_degradation.empty()) return thresholds;
  for (;;) {
    const auto comma = max_degradation.find(',');
    add_threshold(max_degradation.substr(0, comma), thresholds);
    if (comma == std::string_view::npos) return thresholds;
    max_degradation.remove_prefix(comma + 1);
  }
}

void check_thresholds(const Thresholds& thresholds, const std::vector<MetricSpec>& metrics) {
  for (const auto& [metric, limit] : thresholds.percent) {
    const auto spec = std::ranges::find(metrics, metric, &MetricSpec::name);
    const bool is_known = spec != metrics.end();
    if (is_known && spec->kind == MetricKind::Divergence) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--max-degradation: {} is in nats, not in percent; use --max-kl {}", metric, limit));
    }
    if (!is_known || spec->kind == MetricKind::Agreement) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--max-degradation: {} is none of the metrics that can degrade here: {}", metric,
                              names_of(metrics)));
    }
  }
  if (thresholds.accuracy_percent && !has_kind(metrics, MetricKind::Accuracy)) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--max-degradation {0} judges accuracy tasks, and --tasks names none; add continuation or "
                            "choice:FILE.jsonl, or name the metric as in ppl={0}",
                            *thresholds.accuracy_percent));
  }
  if (thresholds.max_kl && !has_kind(metrics, MetricKind::Divergence)) {
    throw Error(ErrorCode::InvalidArgument, "--max-kl judges the kl task: add kl to --tasks");
  }
}

std::optional<Degradation> degradation(const Metric& baseline, const Metric& model) {
  if (baseline.samples.empty() || model.samples.empty()) return std::nullopt;
  const double before = baseline.value();
  const double after = model.value();
  const double paired = paired_standard_error(model.samples, baseline.samples);
  switch (model.spec.kind) {
    case MetricKind::Accuracy:
      if (before == 0) return Degradation{0, 0};  // nothing left to lose
      return Degradation{100 * (before - after) / before, 100 * paired / before};
    case MetricKind::Perplexity:
      // Samples are logarithms: the ratio's error follows from theirs.
      return Degradation{100 * (after - before) / before, 100 * paired * after / before};
    case MetricKind::Divergence:
    case MetricKind::Agreement: break;
  }
  return std::nullopt;
}

std::string_view name(Outcome outcome) {
  switch (outcome) {
    case Outcome::Accepted: return "accepted";
    case Outcome::Rejected: return "rejected";
    case Outcome::NotJudged: break;
  }
  return "not judged";
}

Verdict judge(const std::vector<Metric>& baseline, const std::vector<Metric>& model, const Thresholds& thresholds) {
  check(baseline.size() == model.size(), "both models have the same metrics");
  Verdict verdict;
  for (std::size_t i = 0; i < model.size(); ++i) {
    if (auto judgment = judge_metric(baseline[i], model[i], thresholds)) verdict.judgments.push_back(*judgment);
  }
  if (verdict.judgments.empty()) return verdict;
  const bool all_passed = std::ranges::all_of(verdict.judgments, &Judgment::passed);
  verdict.outcome = all_passed ? Outcome::Accepted : Outcome::Rejected;
  return verdict;
}

}  // namespace nibble::eval
