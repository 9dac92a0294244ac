#include "eval/log_likelihood.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/engine.h"
#include "eval/log_probs.h"
#include "eval/task.h"
#include "tokenizer/tokenizer.h"

namespace nibble::eval {
namespace {

/// Tokens to run and whose targets to read from them: a continuation's last token is never an input.
struct Pass {
  std::vector<std::int32_t> inputs;
  std::vector<std::size_t> members;  // continuations with these inputs
};

std::vector<std::int32_t> inputs_of(const Continuation& continuation, std::int64_t max_len) {
  const auto count = std::min(static_cast<std::int64_t>(continuation.tokens.size()) - 1, max_len);
  if (continuation.num_scored > count) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("a continuation of {} tokens does not fit the model's context of {} tokens",
                            continuation.num_scored, max_len));
  }
  return {continuation.tokens.end() - 1 - count, continuation.tokens.end() - 1};
}

std::vector<Pass> plan_passes(std::span<const Continuation> continuations, std::int64_t max_len) {
  std::vector<Pass> passes;
  for (std::size_t c = 0; c < continuations.size(); ++c) {
    std::vector<std::int32_t> inputs = inputs_of(continuations[c], max_len);
    auto same = std::ranges::find(passes, inputs, &Pass::inputs);
    if (same == passes.end()) same = passes.insert(passes.end(), Pass{std::move(inputs), {}});
    same->members.push_back(c);
  }
  return passes;
}

/// Adds log p(target) of this tile's positions to each member that scores them.
void add_tile(const engine::LogitTile& tile, const Pass& pass, std::span<const Continuation> continuations,
              std::vector<double>& sums) {
  const auto num_inputs = static_cast<std::int64_t>(pass.inputs.size());
  for (std::int64_t row = 0; row < tile.logits.rows; ++row) {
    const std::int64_t left = num_inputs - (tile.first_position + row);  // 1 at the last position
    const bool is_scored =
        std::ranges::any_of(pass.members, [&](std::size_t member) { return left <= continuations[member].num_scored; });
    if (!is_scored) continue;
    const auto logits = tile.logits.row_span(row);
    const RowSummary summary = summarize(logits);
    for (const std::size_t member : pass.members) {
      const Continuation& continuation = continuations[member];
      if (left > continuation.num_scored) continue;
      sums[member] += log_prob(logits, summary, *(continuation.tokens.end() - left));
    }
  }
}

}  // namespace

Continuation split_tokens(const tokenizer::Tokenizer& tokenizer, std::string_view context,
                          std::string_view continuation) {
  const auto last = context.find_last_not_of(" \t\n\r\f\v");
  const std::string_view kept = context.substr(0, last == std::string_view::npos ? 0 : last + 1);
  const std::string whole = std::string(context) + std::string(continuation);
  const auto context_len = static_cast<std::int64_t>(tokenizer.encode(kept).size());
  Continuation split;
  split.tokens = tokenizer.encode(whole);
  split.num_scored = static_cast<std::int64_t>(split.tokens.size()) - context_len;
  if (context_len < 1) throw Error(ErrorCode::InvalidArgument, "the context has no token to predict from");
  if (split.num_scored < 1) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("\"{}\" adds no token to its context", continuation));
  }
  return split;
}

std::vector<double> log_likelihoods(Model& model, std::span<const Continuation> continuations) {
  std::vector<double> sums(continuations.size(), 0.0);
  for (const Pass& pass : plan_passes(continuations, model.engine->max_model_len())) {
    const auto start = std::chrono::steady_clock::now();
    model.engine->score(pass.inputs, [&](const engine::LogitTile& tile) { add_tile(tile, pass, continuations, sums); });
    model.scoring_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    model.scored_tokens += static_cast<std::int64_t>(pass.inputs.size());
  }
  return sums;
}

}  // namespace nibble::eval
