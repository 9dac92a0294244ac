#include <memory>
#include <string_view>
#include <vector>
#include "eval/task.h"
#include "eval/windows.h"

namespace nibble::eval {
namespace {

/// exp(mean negative log-likelihood) over non-overlapping windows of the text: the protocol of GPTQ's and most papers'
/// WikiText-2 numbers and of transformers' guide at stride = window. A last window that is not whole is left out.
class Perplexity : public Task {
 public:
  std::vector<MetricSpec> metrics() const override { return {{"ppl", "perplexity", MetricKind::Perplexity}}; }

  bool needs_text() const override { return true; }

  std::vector<TaskResult> run(TaskContext& context) const override {
    std::vector<TaskResult> results;
    for (const WindowScores& scores : context.window_scores()) {
      results.push_back({{{metrics().front(), scores.negative_log_likelihoods}}, nullptr});
    }
    return results;
  }
};

}  // namespace

std::unique_ptr<Task> make_perplexity(std::string_view /*argument*/) {
  return std::make_unique<Perplexity>();
}

}  // namespace nibble::eval
