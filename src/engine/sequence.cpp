#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace nibble::engine {

Sequence::Sequence(Request request, const tokenizer::Tokenizer& tokenizer, std::uint64_t seed,
                   const std::vector<std::int32_t>& eos_token_ids, std::int64_t max_model_len)
    : request_(std::move(request)),
      tokens_(request_.prompt),
      num_prompt_tokens_(static_cast<std::int64_t>(tokens_.size())),
      max_model_len_(max_model_len),
      seed_(request_.params.seed.value_or(seed)),
      eos_token_ids_(eos_token_ids),
      stop_tokens_(request_.params.stop_token_ids),
      stream_(tokenizer, request_.params.stop,
              request_.params.include_stop_str_in_output ? TextStream::StopString::Include
                                                         : TextStream::StopString::Exclude,
              request_.params.skip_special_tokens),
      counts_tokens_(request_.params.repetition_penalty != 1 || request_.params.presence_penalty != 0 ||
                     request_.params.frequency_penalty != 0) {
  if (!request_.params.ignore_eos) stop_tokens_.insert(stop_tokens_.end(), eos_token_ids.begin(), eos_token_ids.end());
  if (counts_tokens_) {
    for (const std::int32_t token : tokens_) count(token, false);
  }
  if (wants_prompt_logprobs()) prompt_logprobs_.emplace_back();
}

backend::SamplingRow Sequence::sampling_row(std::int64_t num_pending) const {
  const SamplingParams& params = request_.params;
  backend::SamplingRow row;
  row.temperature = params.temperature;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.top_k = params.top_k;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.seed = seed_;
  row.position = static_cast<std::uint64_t>(num_output_tokens() + num_pending);
  row.counts = counts_;
  row.logit_bias = params.logit_bias;
  if (num_output_tokens() + num_pending < params.min_tokens) row.banned = stop_tokens_;
  row.num_logprobs = params.num_logprobs;
  return row;
}

void Sequence::append(const backend::SampledToken& sampled) {
  if (!sampled.is_finite) {
    finish(FinishReason::Error, "the model produced no finite logits for this request");
    return;
  }
  tokens_.push_back(sampled.token);
  if (counts_tokens_) count(sampled.token, true);
  const bool is_stop = is_stop_token(sampled.token) && num_output_tokens() > request_.params.min_tokens;
  // The token that stops is no text, unless the client wants to see it.
  const bool shows_token = !is_stop || request_.params.include_stop_str_in_output;
  std::string text = shows_token ? stream_.add(sampled.token) : std::string();
  if (is_stop || stream_.stop_string()) {
    finish_reason_ = FinishReason::Stop;
  } else if (num_output_tokens() >= request_.params.max_tokens || num_tokens() >= max_model_len_) {
    finish_reason_ = FinishReason::Length;
  }
  if (is_finished() && !stream_.stop_string()) text += stream_.finish();
  emit(std::move(text), &sampled);
}

void Sequence::add_prompt_logprob(TokenLogprob logprob) {
  prompt_logprobs_.emplace_back(std::move(logprob));
  ++num_prompt_logprobs_;
}

void Sequence::finish(FinishReason reason, std::string error, ErrorCode code) {
  if (is_finished()) return;
  finish_reason_ = reason;
  RequestOutput output;
  output.text = stream_.finish();
  output.finish_reason = reason;
  output.error = std::move(error);
  output.error_code = code;
  output.num_prompt_tokens = num_prompt_tokens_;
  output.num_cached_tokens = num_cached;
  output.num_output_tokens = num_output_tokens();
  request_.on_output(std::move(output));
}

void Sequence::count(std::int32_t token, bool is_output) {
  const auto [entry, is_new] = count_of_.try_emplace(token, counts_.size());
  if (is_new) counts_.push_back({.token = token});
  backend::TokenCount& counter = counts_[entry->second];
  ++(is_output ? counter.in_output : counter.in_prompt);
}

bool Sequence::is_stop_token(std::int32_t token) const {
  return std::ranges::find(stop_tokens_, token) != stop_tokens_.end();
}

void Sequence::emit(std::string text, const backend::SampledToken* sampled) {
  RequestOutput output;
  output.text = std::move(text);
  output.tokens = {sampled->token};
  if (request_.params.num_logprobs >= 0) {
    output.logprobs.push_back({sampled->token, sampled->logprob, sampled->top_logprobs});
  }
  output.prompt_logprobs = std::exchange(prompt_logprobs_, {});
  output.finish_reason = finish_reason_;
  if (stream_.stop_string()) output.stop_string = *stream_.stop_string();
  const bool is_eos = std::ranges::find(eos_token_ids_, sampled->token) != eos_token_ids_.end();
  if (finish_reason_ == FinishReason::Stop && !stream_.stop_string() && !is_eos) output.stop_token = sampled->token;
  output.num_prompt_tokens = num_prompt_tokens_;
  output.num_cached_tokens = num_cached;
  output.num_output_tokens = num_output_tokens();
  request_.on_output(std::move(output));
}

}  // namespace nibble::engine
