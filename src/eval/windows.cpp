#include "eval/windows.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/progress.h"
#include "core/thread_pool.h"
#include "engine/engine.h"
#include "engine/layer_outer_engine.h"
#include "eval/log_probs.h"
#include "eval/logit_stream.h"
#include "eval/task.h"

namespace nibble::eval {
namespace {

/// A model's place in a window: its stream and the tile that holds the next position.
struct Reader {
  std::unique_ptr<LogitStream> stream;
  engine::LogitTile tile;

  std::int64_t end() const { return tile.first_position + tile.logits.rows; }
  std::span<const float> logits(std::int64_t position) const {
    return tile.logits.row_span(position - tile.first_position);
  }
};

/// Scores position `position` of every model against the token that follows; entry `idx` of each result.
void score_position(const std::vector<Reader>& readers, std::int64_t position, std::int32_t next_token, std::size_t idx,
                    std::vector<WindowScores>& scores) {
  const auto baseline_logits = readers.front().logits(position);
  const RowSummary baseline = summarize(baseline_logits);
  for (std::size_t m = 0; m < readers.size(); ++m) {
    const auto logits = readers[m].logits(position);
    const RowSummary summary = m == 0 ? baseline : summarize(logits);
    scores[m].negative_log_likelihoods[idx] = -log_prob(logits, summary, next_token);
    if (scores[m].divergences.empty()) continue;
    scores[m].divergences[idx] = kl_divergence(baseline_logits, baseline, logits, summary);
    scores[m].agreements[idx] = summary.top_token == baseline.top_token ? 1 : 0;
  }
}

std::vector<WindowScores> make_scores(std::size_t num_models, const WindowPlan& plan) {
  const auto count = static_cast<std::size_t>(plan.num_windows * (plan.window_len - 1));
  std::vector<WindowScores> scores(num_models);
  for (std::size_t m = 0; m < num_models; ++m) {
    scores[m].negative_log_likelihoods.resize(count);
    if (!plan.compares || m == 0) continue;
    scores[m].divergences.resize(count);
    scores[m].agreements.resize(count);
  }
  return scores;
}

/// One window; its first prediction is entry `first_idx` of `scores`.
void score_window(std::vector<Model>& models, const std::vector<std::int32_t>& window, std::size_t first_idx,
                  ThreadPool& pool, std::vector<WindowScores>& scores) {
  std::vector<Reader> readers(models.size());
  for (std::size_t m = 0; m < models.size(); ++m) {
    readers[m].stream = std::make_unique<LogitStream>(*models[m].engine, window);
  }
  const auto num_predictions = static_cast<std::int64_t>(window.size()) - 1;
  for (std::int64_t position = 0; position < num_predictions;) {
    std::int64_t end = num_predictions;
    for (Reader& reader : readers) {
      if (reader.end() <= position) reader.tile = reader.stream->next();
      end = std::min(end, reader.end());
    }
    // Every engine waits in its tile meanwhile, so the cores are free for the vocabulary-wide sums.
    pool.run(end - position, [&](std::int64_t row, int) {
      const auto p = static_cast<std::size_t>(position + row);
      score_position(readers, position + row, window[p + 1], first_idx + p, scores);
    });
    position = end;
  }
  for (std::size_t m = 0; m < models.size(); ++m) {
    models[m].scored_tokens += static_cast<std::int64_t>(window.size());
    models[m].scoring_seconds += readers[m].stream->seconds();
  }
}

/// Engines that hold a block at a time take all windows through their blocks first.
void prefetch(std::vector<Model>& models, const WindowPlan& plan) {
  for (Model& model : models) {
    if (model.layer_outer == nullptr) continue;
    std::vector<std::vector<std::int32_t>> windows;
    for (std::int64_t w = 0; w < plan.num_windows; ++w) {
      const auto window =
          plan.tokens.subspan(static_cast<std::size_t>(w * plan.window_len), static_cast<std::size_t>(plan.window_len));
      windows.emplace_back(window.begin(), window.end());
    }
    const auto start = std::chrono::steady_clock::now();
    model.layer_outer->prefetch(std::move(windows));
    model.scoring_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
}

}  // namespace

std::vector<WindowScores> score_windows(std::vector<Model>& models, const WindowPlan& plan, ThreadPool& pool) {
  std::vector<WindowScores> scores = make_scores(models.size(), plan);
  prefetch(models, plan);
  Progress progress("Scoring windows", plan.num_windows, "windows");
  progress.update(0);
  for (std::int64_t w = 0; w < plan.num_windows; ++w) {
    const auto window =
        plan.tokens.subspan(static_cast<std::size_t>(w * plan.window_len), static_cast<std::size_t>(plan.window_len));
    score_window(models, {window.begin(), window.end()}, static_cast<std::size_t>(w * (plan.window_len - 1)), pool,
                 scores);
    progress.update(w + 1);
  }
  return scores;
}

}  // namespace nibble::eval
