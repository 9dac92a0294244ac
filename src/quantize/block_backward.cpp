#include "quantize/block_backward.h"

#include <algorithm>
#include <cstddef>

#include "quantize/backward.h"
#include "quantize/calibration_linear.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

using models::Prepare;

bool is_norm(Prepare prepare) {
  return prepare == Prepare::InputNorm || prepare == Prepare::PostAttentionNorm;
}

Matrix<float> first_rows(Tensor& tensor, std::int64_t count) {
  return tensor.matrix<float>().block(0, count);
}

}  // namespace

models::DecoderBlock make_float_decoder(const FloatBlock& block, backend::Backend& backend) {
  models::DecoderBlock decoder(block.spec, backend.make_vector(block.input_norm),
                               backend.make_vector(block.post_attention_norm));
  for (std::size_t s = 0; s < block.stages.size(); ++s) {
    decoder.set_linear(s, make_calibration_linear(block.stages[s], backend.pool()));
  }
  return decoder;
}

BlockBackward::BlockBackward(const FloatBlock& block, const BackwardContext& context)
    : block_(block), context_(context), decoder_(make_float_decoder(block, context.backend)) {
  const models::BlockSpec& spec = block.spec;
  const std::vector<backend::ActivationFormat> formats(spec.stages.size());
  state_ = models::make_block_state(context.backend, spec, context.batch_tokens, formats);
  for (std::size_t s = 0; s < spec.stages.size(); ++s) {
    sums_.emplace_back(block.stages[s], context.needs, context.fisher_form);
    d_inputs_.push_back(Tensor::empty(DType::F32, state_.stage_input[s].values.shape()));
    d_outputs_.push_back(
        spec.stages[s].adds_to_hidden ? Tensor() : Tensor::empty(DType::F32, state_.stage_output[s].values.shape()));
    norm_inputs_.push_back(is_norm(spec.stages[s].prepare)
                               ? Tensor::empty(DType::F32, {context.batch_tokens, spec.hidden_size})
                               : Tensor());
  }
}

void BlockBackward::run(const CalibrationBatch& batch, backend::KvCache& cache, Matrix<const float> input,
                        Matrix<float> gradient) {
  recompute(batch, cache, input);
  const std::int64_t num_tokens = batch.num_tokens();
  ThreadPool& pool = context_.backend.pool();
  for (std::size_t s = block_.spec.stages.size(); s-- > 0;) {
    const models::Stage& stage = block_.spec.stages[s];
    const Matrix<const float> d_output = stage.adds_to_hidden ? gradient : first_rows(d_outputs_[s], num_tokens);
    sums_[s].add(first_rows(state_.stage_input[s].values, num_tokens), d_output, batch.query_start, pool);
    const Matrix<float> d_input = propagate_linears(s, d_output);
    switch (stage.prepare) {
      case Prepare::InputNorm:
      case Prepare::PostAttentionNorm:
        rms_norm_backward(first_rows(norm_inputs_[s], num_tokens), norm_weight(stage.prepare), block_.spec.rms_norm_eps,
                          d_input, gradient, pool);
        break;
      case Prepare::Attention:
        attention_backward(first_rows(state_.stage_output[s - 1].values, num_tokens), block_.spec.attention,
                           context_.rope, batch.query_start, d_input, first_rows(d_outputs_[s - 1], num_tokens), pool);
        break;
      case Prepare::SiluMul:
        silu_mul_backward(first_rows(state_.stage_output[s - 1].values, num_tokens), d_input,
                          first_rows(d_outputs_[s - 1], num_tokens), pool);
        break;
    }
  }
}

void BlockBackward::recompute(const CalibrationBatch& batch, backend::KvCache& cache, Matrix<const float> input) {
  const backend::ForwardBatch view = batch.view();
  context_.backend.prepare_step(view, cache);
  const models::BlockContext context{context_.backend, context_.rope, cache, view, /*layer_idx=*/0};
  context_.backend.write(input, state_.hidden);
  const std::size_t num_stages = block_.spec.stages.size();
  for (std::size_t s = 0; s < num_stages; ++s) {
    decoder_.prepare(s, context, state_);
    if (is_norm(block_.spec.stages[s].prepare)) {
      std::ranges::copy(state_.hidden.values.span<float>(), norm_inputs_[s].span<float>().begin());
    }
    if (s + 1 < num_stages) decoder_.apply(s, state_);  // nobody reads the block's output
  }
}

Matrix<float> BlockBackward::propagate_linears(std::size_t stage_idx, Matrix<const float> d_output) {
  const Matrix<float> d_input = first_rows(d_inputs_[stage_idx], d_output.rows);
  std::fill_n(d_input.data, d_input.rows * d_input.cols, 0.0f);
  std::int64_t column = 0;
  for (const FloatLinear& linear : block_.stages[stage_idx]) {
    const auto weight = linear.weight.matrix<float>();
    accumulate_untransposed(d_output.columns(column, weight.rows), weight, d_input, context_.backend.pool());
    column += weight.rows;
  }
  return d_input;
}

std::span<const float> BlockBackward::norm_weight(Prepare which) const {
  return (which == Prepare::InputNorm ? block_.input_norm : block_.post_attention_norm).span<float>();
}

StageLossStatistics BlockBackward::take(std::size_t stage_idx) {
  return sums_[stage_idx].take();
}

}  // namespace nibble::quantize
