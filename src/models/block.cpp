#include "models/block.h"

#include <utility>

namespace nibble::models {
namespace {

using backend::Activation;

/// Width of what `prepare` produces for a stage.
std::int64_t stage_input_width(const BlockSpec& spec, const Stage& stage) {
  return linear_shape(spec, stage.linears.front())[1];
}

std::int64_t stage_output_width(const BlockSpec& spec, const Stage& stage) {
  std::int64_t width = 0;
  for (const std::string& linear : stage.linears) width += linear_shape(spec, linear)[0];
  return width;
}

bool ends_with(std::string_view text, std::string_view suffix) {
  return text.ends_with(suffix);
}

}  // namespace

Shape linear_shape(const BlockSpec& spec, std::string_view relative) {
  const std::int64_t q_width = spec.attention.q_width();
  const std::int64_t kv_width = spec.attention.kv_width();
  if (ends_with(relative, "q_proj")) return {q_width, spec.hidden_size};
  if (ends_with(relative, "k_proj") || ends_with(relative, "v_proj")) return {kv_width, spec.hidden_size};
  if (ends_with(relative, "o_proj")) return {spec.hidden_size, q_width};
  if (ends_with(relative, "gate_proj") || ends_with(relative, "up_proj")) {
    return {spec.intermediate_size, spec.hidden_size};
  }
  check(ends_with(relative, "down_proj"), "linear_shape of a module that no stage names");
  return {spec.hidden_size, spec.intermediate_size};
}

DecoderBlock::DecoderBlock(BlockSpec spec, Tensor input_norm, Tensor post_attention_norm)
    : spec_(std::move(spec)),
      input_norm_(std::move(input_norm)),
      post_attention_norm_(std::move(post_attention_norm)),
      linears_(spec_.stages.size()) {}

void DecoderBlock::set_linear(std::size_t stage_idx, std::unique_ptr<backend::Linear> linear) {
  linears_[stage_idx] = std::move(linear);
}

void DecoderBlock::set_norm(Prepare which, Tensor weight) {
  check(which == Prepare::InputNorm || which == Prepare::PostAttentionNorm, "set_norm of a stage without a norm");
  (which == Prepare::InputNorm ? input_norm_ : post_attention_norm_) = std::move(weight);
}

void DecoderBlock::prepare(std::size_t stage_idx, const BlockContext& context, BlockState& state) const {
  const Stage& stage = spec_.stages[stage_idx];
  Activation& out = state.stage_input[stage_idx];
  if (has_linear(stage_idx)) out.format = linear(stage_idx).input_format();
  Activation* previous = stage_idx > 0 ? &state.stage_output[stage_idx - 1] : nullptr;
  const bool has_delta = stage_idx > 0 && spec_.stages[stage_idx - 1].adds_to_hidden;
  switch (stage.prepare) {
    case Prepare::InputNorm: context.backend.norm(state.hidden, nullptr, input_norm_, spec_.rms_norm_eps, out); return;
    case Prepare::Attention:
      context.backend.rope_kv_write(*previous, spec_.attention, context.rope, context.cache, context.layer_idx,
                                    context.batch);
      context.backend.attention(*previous, spec_.attention, context.cache, context.layer_idx, context.batch, out);
      return;
    case Prepare::PostAttentionNorm:
      context.backend.norm(state.hidden, has_delta ? previous : nullptr, post_attention_norm_, spec_.rms_norm_eps, out);
      return;
    case Prepare::SiluMul: context.backend.silu_mul(*previous, out); return;
  }
}

void DecoderBlock::apply(std::size_t stage_idx, BlockState& state) const {
  linear(stage_idx).forward(state.stage_input[stage_idx], state.stage_output[stage_idx]);
}

void DecoderBlock::finish(const BlockContext& context, BlockState& state) const {
  if (spec_.stages.back().adds_to_hidden) context.backend.add(state.hidden, state.stage_output.back());
}

void DecoderBlock::forward(const BlockContext& context, BlockState& state) const {
  for (std::size_t stage_idx = 0; stage_idx < spec_.stages.size(); ++stage_idx) {
    prepare(stage_idx, context, state);
    apply(stage_idx, state);
  }
  finish(context, state);
}

BlockState make_block_state(backend::Backend& backend, const BlockSpec& spec, std::int64_t capacity,
                            std::span<const backend::ActivationFormat> input_formats) {
  check(input_formats.size() == spec.stages.size(), "one input format a stage");
  BlockState state;
  state.hidden = backend.make_activation(capacity, spec.hidden_size, backend.hidden_format());
  for (std::size_t s = 0; s < spec.stages.size(); ++s) {
    state.stage_input.push_back(
        backend.make_activation(capacity, stage_input_width(spec, spec.stages[s]), input_formats[s]));
    state.stage_output.push_back(
        backend.make_activation(capacity, stage_output_width(spec, spec.stages[s]), backend.hidden_format()));
  }
  return state;
}

}  // namespace nibble::models
