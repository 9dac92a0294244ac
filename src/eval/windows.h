#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"

namespace nibble::eval {

struct Model;

/// One model's predictions over windows of a text, one entry for each predicted token: in each window of n tokens the
/// last n - 1, each from the tokens before it in its window.
struct WindowScores {
  std::vector<double> negative_log_likelihoods;  // nats
  std::vector<double> divergences;               // KL(baseline || model), nats; empty where not compared
  std::vector<double> agreements;                // 1 where the most likely token is the baseline's; as above
};

struct WindowPlan {
  std::span<const std::int32_t> tokens;  // [num_windows * window_len], non-overlapping windows one after the other
  std::int64_t window_len = 0;
  std::int64_t num_windows = 0;
  bool compares = false;  // the others with models[0]
};

/// Scores all models in lock-step, tile by tile, so that logits are compared where they are: memory beside the engines'
/// own is a few numbers a token. Adds to the models' scored_tokens and scoring_seconds. Progress on stderr.
std::vector<WindowScores> score_windows(std::vector<Model>& models, const WindowPlan& plan, ThreadPool& pool);

}  // namespace nibble::eval
