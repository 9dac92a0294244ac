#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "eval/task.h"
#include "eval/verdict.h"

namespace nibble::eval {

/// All that was found out about one model.
struct ModelReport {
  std::string name;
  std::string description;  // of the engine
  std::int64_t checkpoint_bytes = 0;
  std::int64_t weight_bytes = 0;  // packed, in memory
  double bits_per_weight = 0;     // of the checkpoint, everything counted
  std::int64_t scored_tokens = 0;
  double scoring_tokens_per_second = 0;
  std::optional<double> decode_tokens_per_second;
  std::vector<Metric> metrics;
  std::vector<std::optional<Degradation>> degradations;  // one a metric; nothing for the baseline
  Verdict verdict;
};

struct Report {
  bool has_baseline = false;  // then it is models[0]
  std::vector<ModelReport> models;
  std::vector<std::pair<std::string, std::vector<Json>>> rows;  // task → per model its items, where a task has items

  /// Rejected where one model is, NotJudged where none was judged.
  Outcome outcome() const;
};

enum class Baseline : std::uint8_t { None, FirstModel };

/// A checked plan: the tasks exist, their files are well-formed, the text can be read, every threshold judges
/// something. Made before models are loaded, so that a typing error costs no minutes.
struct Plan {
  EvalOptions options;
  Thresholds thresholds;
  Baseline baseline = Baseline::None;
  std::int64_t num_decode_tokens = 0;  // measure decoding over this many; 0: do not
  std::vector<std::unique_ptr<Task>> tasks;
};

/// Errors: InvalidArgument naming the flag.
Plan make_plan(EvalOptions options, Thresholds thresholds, Baseline baseline);

/// Runs the plan on loaded models, the baseline first. Errors: InvalidArgument where a model has another vocabulary
/// than the first; whatever tasks and engines report.
Report evaluate(std::vector<Model>& models, const Plan& plan);

}  // namespace nibble::eval
