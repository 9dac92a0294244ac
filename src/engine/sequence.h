#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "engine/request.h"
#include "engine/text_stream.h"

namespace nibble::engine {

/// One request in flight: its tokens, how many of them are in the KV cache, where, and how it samples. The engine's
/// thread owns it.
class Sequence {
 public:
  /// `seed` is used where the request names none; `eos_token_ids` end it unless it ignores them.
  Sequence(Request request, const tokenizer::Tokenizer& tokenizer, std::uint64_t seed,
           const std::vector<std::int32_t>& eos_token_ids, std::int64_t max_model_len);

  const std::string& id() const { return request_.id; }
  const SamplingParams& params() const { return request_.params; }
  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  std::int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens_; }
  bool wants_prompt_logprobs() const { return request_.params.num_prompt_logprobs >= 0; }

  /// How to sample the next token, or the one behind it while `num_pending` is 1. The spans point into this sequence.
  backend::SamplingRow sampling_row(std::int64_t num_pending = 0) const;
  /// Sampling looks at the ids of all tokens before (penalties).
  bool needs_last_token() const { return counts_tokens_; }
  /// The next token is the last that max_tokens or the context allows.
  bool ends_with_next_token() const {
    return num_output_tokens() + 1 >= params().max_tokens || num_tokens() + 1 >= max_model_len_;
  }
  /// Takes the sampled token and hands what it gives to the client.
  void append(const backend::SampledToken& sampled);
  /// The first prompt token whose log-probability is still wanted (a preempted sequence computes tokens again).
  std::int64_t next_prompt_logprob() const { return num_prompt_logprobs_; }
  void add_prompt_logprob(TokenLogprob logprob);
  /// Ends the sequence from outside.
  void finish(FinishReason reason, std::string error = {}, ErrorCode code = ErrorCode::Internal);
  bool is_finished() const { return finish_reason_ != FinishReason::None; }

  // The scheduler's side.
  std::vector<std::int32_t> blocks;
  std::int64_t num_computed = 0;    // tokens whose K, V are in the cache
  std::int64_t num_cached = 0;      // of these, found by prefix caching at first admission
  std::int64_t num_registered = 0;  // full blocks made findable
  std::uint64_t arrival = 0;

 private:
  void count(std::int32_t token, bool is_output);
  bool is_stop_token(std::int32_t token) const;
  void emit(std::string text, const backend::SampledToken* sampled);

  Request request_;
  std::vector<std::int32_t> tokens_;
  std::int64_t num_prompt_tokens_;
  std::int64_t max_model_len_;
  std::uint64_t seed_;
  std::vector<std::int32_t> eos_token_ids_;
  std::vector<std::int32_t> stop_tokens_;  // EOS (unless ignored) and stop_token_ids
  TextStream stream_;
  bool counts_tokens_;
  std::vector<backend::TokenCount> counts_;
  std::unordered_map<std::int32_t, std::size_t> count_of_;
  std::vector<std::optional<TokenLogprob>> prompt_logprobs_;
  std::int64_t num_prompt_logprobs_ = 1;  // nothing predicts the first token
  FinishReason finish_reason_ = FinishReason::None;
};

}  // namespace nibble::engine
