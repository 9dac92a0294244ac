#pragma once

#include <string>
#include <vector>

#include "core/tensor.h"
#include "formats/checkpoint.h"
#include "models/block.h"

namespace nibble::quantize {

/// A linear while it is being quantized.
struct FloatLinear {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  Tensor weight;     // f32 [out_features, in_features]
  Tensor bias;       // f32 [out_features], or empty
};

/// One decoder block in f32: what is quantized, and what scales can be folded into.
struct FloatBlock {
  models::BlockSpec spec;
  std::vector<std::vector<FloatLinear>> stages;  // as spec.stages[s].linears
  Tensor input_norm;                             // f32 [hidden_size]
  Tensor post_attention_norm;                    // f32 [hidden_size]
};

/// Errors: NotFound and Corrupt of the checkpoint; Corrupt naming a linear whose weights are not finite or lie outside
/// f16's range, since no scale could be stored for them.
FloatBlock load_float_block(const formats::Checkpoint& checkpoint, models::BlockSpec spec);

/// Input channel k of a stage is scaled by channel map[k] of its fold producer: the identity, except for v → o with
/// fewer key-value heads than query heads. Empty where the stage has no producer to fold into.
std::vector<std::int32_t> fold_channels(const models::BlockSpec& spec, std::size_t stage_idx);

/// Moves a scale from the producer into the stage: its linears' input columns are multiplied by scale[map[k]], the
/// producer's output channel c (norm weight; row and bias of a linear) is divided by scale[c]. The float block computes
/// what it did before.
void fold_scale(FloatBlock& block, std::size_t stage_idx, const std::vector<float>& scale);

}  // namespace nibble::quantize
