#include "models/decoder.h"

#include <algorithm>
#include <numeric>
#include <ranges>
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
  capture_.reset();  // it replays on the activations that go now
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

std::size_t Decoder::capture(backend::KvCache& cache, std::int64_t max_sequences,
                             std::int64_t max_blocks_per_sequence) {
  const backend::StepLimits limits{.max_tokens = max_tokens_,
                                   .max_sequences = std::min({max_sequences, max_logit_rows_, max_tokens_}),
                                   .max_blocks_per_sequence = max_blocks_per_sequence};
  capture_.reset();
  capture_ = backend_->make_step_capture(limits, cache);
  captured_cache_ = &cache;
  if (capture_ == nullptr) return 0;
  // Largest first: what a first run allocates suffices for the others. Sequences without context touch no cache.
  for (const std::int64_t size : std::views::reverse(capture_->batch_sizes())) {
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(size * max_blocks_per_sequence + size));
    const std::vector<std::int64_t> no_slots(static_cast<std::size_t>(size), -1);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(size) + 1);
    std::iota(rows.begin(), rows.end(), 0);
    const auto num_rows = static_cast<std::size_t>(size);
    step({.tokens = std::span(zeros).first(num_rows),
          .positions = std::span(zeros).first(num_rows),
          .query_start = rows,
          .context_len = std::span(zeros).first(num_rows),
          .block_table = std::span(zeros).first(static_cast<std::size_t>(size * max_blocks_per_sequence)),
          .block_table_stride = max_blocks_per_sequence,
          .slot_mapping = no_slots,
          .logit_rows = std::span(rows).first(num_rows)},
         cache, size);
  }
  return capture_->batch_sizes().size();
}

backend::Activation& Decoder::step(const backend::ForwardBatch& batch, backend::KvCache& cache,
                                   std::int64_t num_logit_rows) {
  check(batch.num_tokens() <= max_tokens_ && num_logit_rows <= max_logit_rows_,
        "Decoder::step beyond what was reserved");
  const bool is_decode = batch.num_tokens() == batch.num_sequences() && batch.num_tokens() == num_logit_rows &&
                         batch.logit_rows.size() == batch.tokens.size();
  backend::StepCapture* capture = is_decode && captured_cache_ == &cache ? capture_.get() : nullptr;
  backend_->run_step(batch, cache, capture, [&] {
    forward(batch, cache);
    if (num_logit_rows > 0) logits(batch, 0, num_logit_rows);
  });
  logits_.num_tokens = num_logit_rows;
  return logits_;
}

backend::Activation& Decoder::logits(const backend::ForwardBatch& batch, std::int64_t first, std::int64_t count) {
  check(count <= max_logit_rows_, "Decoder::logits beyond what was reserved");
  backend_->gather_rows(hidden_, batch, first, count, final_hidden_);
  final_input_.format = parts_.lm_head->input_format();
  backend_->norm(final_hidden_, nullptr, parts_.final_norm, static_cast<float>(parts_.config.rms_norm_eps),
                 final_input_);
  parts_.lm_head->forward(final_input_, logits_);
  return logits_;
}

void Decoder::forward(const backend::ForwardBatch& batch, backend::KvCache& cache) {
  backend_->embed(*parts_.embedding, batch, hidden_);
  for (std::size_t b = 0; b < parts_.blocks.size(); ++b) {
    BlockState& state = groups_[group_of_block_[b]].state;
    state.hidden = std::move(hidden_);
    parts_.blocks[b].forward({*backend_, *parts_.rope, cache, batch, static_cast<std::int64_t>(b)}, state);
    hidden_ = std::move(state.hidden);
  }
}

}  // namespace nibble::models
