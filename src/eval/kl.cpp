#include <memory>
#include <string_view>
#include <vector>
#include "eval/task.h"
#include "eval/windows.h"

namespace nibble::eval {
namespace {

/// How far the next-token distributions moved: mean KL(baseline || model) in nats over every predicted position of the
/// windows that perplexity uses, and how often the most likely token is still the same.
class KlDivergence : public Task {
 public:
  std::vector<MetricSpec> metrics() const override {
    return {{"kl", "KL to baseline (nats)", MetricKind::Divergence},
            {"top1", "top-1 agreement", MetricKind::Agreement}};
  }

  bool needs_baseline() const override { return true; }
  bool needs_text() const override { return true; }

  std::vector<TaskResult> run(TaskContext& context) const override {
    const std::vector<MetricSpec> specs = metrics();
    std::vector<TaskResult> results;
    for (const WindowScores& scores : context.window_scores()) {
      results.push_back({{{specs[0], scores.divergences}, {specs[1], scores.agreements}}, nullptr});
    }
    return results;
  }
};

}  // namespace

std::unique_ptr<Task> make_kl(std::string_view /*argument*/) {
  return std::make_unique<KlDivergence>();
}

}  // namespace nibble::eval
