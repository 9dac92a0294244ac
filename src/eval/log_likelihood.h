#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "eval/task.h"

namespace nibble::eval {

/// A text as tokens of which the last `num_scored` (at least 1) are judged given those before them (at least 1).
struct Continuation {
  std::vector<std::int32_t> tokens;
  std::int64_t num_scored = 0;
};

/// Context and continuation as tokens, split as lm-eval does: spaces at the context's end go to the continuation, the
/// whole is tokenised in one piece and cut where the context's own tokens end. BOS as the tokenizer adds it.
/// Errors: InvalidArgument where the continuation adds no token or the context has none.
Continuation split_tokens(const tokenizer::Tokenizer& tokenizer, std::string_view context,
                          std::string_view continuation);

/// Sum of log p over the scored tokens of each, in nats. Those that differ in their last token only (the letters of a
/// multiple choice question) share one forward pass. Longer than the model's context: the first tokens are left out, as
/// in lm-eval. Adds to scored_tokens and scoring_seconds. Errors: InvalidArgument where the scored tokens alone are
/// longer than the context.
std::vector<double> log_likelihoods(Model& model, std::span<const Continuation> continuations);

}  // namespace nibble::eval
