#include "models/decoder.h"

#include <algorithm>
#include <utility>

namespace nibble::models {
namespace {

bool same_storage(const backend::ActivationFormat& a, const backend::ActivationFormat& b) {
  return a.kind == b.kind && a.group_size == b.group_size;
}

std::vector<backend::ActivationFormat> input_formats(const DecoderBlock& block) {
  std::vector<backend::ActivationFormat> formats;
  for (std::size_t s = 0; s < block.spec().stages.size(); ++s) formats.push_back(block.linear(s).input_format());
  return formats;
}

}  // namespace

Decoder::Decoder(backend::Backend& backend, Parts parts) : backend_(&backend), parts_(std::move(parts)) {
  for (const DecoderBlock& block : parts_.blocks) {
    const auto formats = input_formats(block);
    const auto found = std::ranges::find_if(groups_, [&](const FormatGroup& group) {
      return std::ranges::equal(group.input_formats, formats, same_storage);
    });
    group_of_block_.push_back(static_cast<std::size_t>(found - groups_.begin()));
    if (found == groups_.end()) groups_.push_back({formats, {}});
  }
}

std::int64_t Decoder::weight_bytes() const {
  std::int64_t bytes = parts_.lm_head->size_bytes();
  for (const DecoderBlock& block : parts_.blocks) {
    for (std::size_t s = 0; s < block.spec().stages.size(); ++s) bytes += block.linear(s).size_bytes();
  }
  // The embedding is counted where it is not the lm_head's own table.
  if (!parts_.config.tie_word_embeddings) {
    bytes += parts_.config.vocab_size * parts_.config.hidden_size *
             static_cast<std::int64_t>(size_bytes(parts_.config.dtype));
  }
  return bytes;
}

std::vector<backend::KvSpec> Decoder::kv_specs(DType dtype, std::span<const KvScales> scales) const {
  check(scales.empty() || scales.size() == parts_.blocks.size(), "one pair of KV scales a layer");
  std::vector<backend::KvSpec> specs;
  for (const DecoderBlock& block : parts_.blocks) {
    const backend::AttentionSpec& attention = block.spec().attention;
    specs.push_back({.dtype = dtype,
                     .num_heads = attention.num_heads,
                     .num_kv_heads = attention.num_kv_heads,
                     .head_dim = attention.head_dim,
                     .sliding_window = attention.sliding_window});
    if (scales.empty()) continue;
    specs.back().k_scale = scales[specs.size() - 1].key;
    specs.back().v_scale = scales[specs.size() - 1].value;
  }
  return specs;
}

void Decoder::reserve(std::int64_t max_tokens, std::int64_t max_logit_rows) {
  const BlockSpec& spec = parts_.blocks.front().spec();
  for (FormatGroup& group : groups_) {
    group.state = make_block_state(*backend_, spec, max_tokens, group.input_formats);
    group.state.hidden = {};
  }
  hidden_ = backend_->make_activation(max_tokens, spec.hidden_size, backend_->hidden_format());
  final_hidden_ = backend_->make_activation(max_logit_rows, spec.hidden_size, backend_->hidden_format());
  final_input_ = backend_->make_activation(max_logit_rows, spec.hidden_size, parts_.lm_head->input_format());
  logits_ = backend_->make_activation(max_logit_rows, parts_.config.vocab_size, backend::ActivationFormat{});
  max_tokens_ = max_tokens;
  max_logit_rows_ = max_logit_rows;
}

void Decoder::forward(const backend::ForwardBatch& batch, backend::KvCache& cache) {
  check(batch.num_tokens() <= max_tokens_, "Decoder::forward beyond what was reserved");
  backend_->embed(*parts_.embedding, batch, hidden_);
  for (std::size_t b = 0; b < parts_.blocks.size(); ++b) {
    BlockState& state = groups_[group_of_block_[b]].state;
    state.hidden = std::move(hidden_);
    parts_.blocks[b].forward({*backend_, *parts_.rope, cache, batch, static_cast<std::int64_t>(b)}, state);
    hidden_ = std::move(state.hidden);
  }
}

backend::Activation& Decoder::logits(std::span<const std::int32_t> rows) {
  check(static_cast<std::int64_t>(rows.size()) <= max_logit_rows_, "Decoder::logits beyond what was reserved");
  backend_->gather_rows(hidden_, rows, final_hidden_);
  final_input_.format = parts_.lm_head->input_format();
  backend_->norm(final_hidden_, nullptr, parts_.final_norm, static_cast<float>(parts_.config.rms_norm_eps),
                 final_input_);
  parts_.lm_head->forward(final_input_, logits_);
  return logits_;
}

}  // namespace nibble::models
