#include "quantize/float_block.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <utility>

#include "weights/linear_weights.h"

namespace nibble::quantize {
namespace {

constexpr float kLargestHalf = 65504.0f;

void expect_storable(const FloatLinear& linear) {
  for (const float w : linear.weight.span<float>()) {
    if (!(std::abs(w) <= kLargestHalf)) {
      throw Error(
          ErrorCode::Corrupt,
          fmt::format("{}: holds {}, no quantized weight can stand for it; the checkpoint is damaged", linear.name, w));
    }
  }
}

FloatLinear load_linear(const formats::Checkpoint& checkpoint, const models::BlockSpec& spec,
                        const std::string& relative) {
  const Shape shape = models::linear_shape(spec, relative);
  FloatLinear linear;
  linear.name = spec.module_name(relative);
  linear.weight = weights::dequantize(checkpoint.linear(linear.name, shape));
  linear.bias = checkpoint.bias(linear.name, shape[0]);
  checkpoint.release(linear.name);
  expect_storable(linear);
  return linear;
}

Tensor load_norm(const formats::Checkpoint& checkpoint, const models::BlockSpec& spec, const std::string& relative) {
  return to_dtype(checkpoint.tensor(spec.module_name(relative) + ".weight"), DType::F32);
}

FloatLinear& find_linear(FloatBlock& block, const std::string& relative) {
  for (std::size_t s = 0; s < block.stages.size(); ++s) {
    const auto& names = block.spec.stages[s].linears;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (names[i] == relative) return block.stages[s][i];
    }
  }
  throw Error(ErrorCode::Internal, block.spec.module_name(relative) + ": no stage holds this fold producer");
}

void divide_norm(FloatBlock& block, const std::string& relative, const std::vector<float>& scale) {
  Tensor& norm = relative == block.spec.input_norm ? block.input_norm : block.post_attention_norm;
  const auto weight = norm.span<float>();
  for (std::size_t c = 0; c < weight.size(); ++c) weight[c] /= scale[c];
}

void divide_rows(FloatLinear& producer, const std::vector<float>& scale) {
  const auto weight = producer.weight.matrix<float>();
  for (std::int64_t c = 0; c < weight.rows; ++c) {
    for (float& w : weight.row_span(c)) w /= scale[static_cast<std::size_t>(c)];
  }
  if (producer.bias.is_empty()) return;
  const auto bias = producer.bias.span<float>();
  for (std::size_t c = 0; c < bias.size(); ++c) bias[c] /= scale[c];
}

}  // namespace

FloatBlock load_float_block(const formats::Checkpoint& checkpoint, models::BlockSpec spec) {
  FloatBlock block;
  block.spec = std::move(spec);
  block.input_norm = load_norm(checkpoint, block.spec, block.spec.input_norm);
  block.post_attention_norm = load_norm(checkpoint, block.spec, block.spec.post_attention_norm);
  for (const models::Stage& stage : block.spec.stages) {
    std::vector<FloatLinear>& linears = block.stages.emplace_back();
    for (const std::string& relative : stage.linears) linears.push_back(load_linear(checkpoint, block.spec, relative));
  }
  return block;
}

std::vector<std::int32_t> fold_channels(const models::BlockSpec& spec, std::size_t stage_idx) {
  using Kind = models::FoldProducer::Kind;
  const models::Stage& stage = spec.stages[stage_idx];
  if (stage.fold_producer.kind == Kind::None) return {};
  const std::int64_t in_features = models::linear_shape(spec, stage.linears.front())[1];
  std::vector<std::int32_t> channels(static_cast<std::size_t>(in_features));
  const std::int32_t heads_per_kv = spec.attention.num_heads / spec.attention.num_kv_heads;
  const std::int32_t head_dim = spec.attention.head_dim;
  for (std::int32_t k = 0; k < static_cast<std::int32_t>(in_features); ++k) {
    const bool by_head = stage.fold_producer.kind == Kind::LinearByHead;
    channels[static_cast<std::size_t>(k)] = by_head ? k / head_dim / heads_per_kv * head_dim + k % head_dim : k;
  }
  return channels;
}

void fold_scale(FloatBlock& block, std::size_t stage_idx, const std::vector<float>& scale) {
  const std::vector<std::int32_t> channels = fold_channels(block.spec, stage_idx);
  for (FloatLinear& linear : block.stages[stage_idx]) {
    const auto weight = linear.weight.matrix<float>();
    for (std::int64_t o = 0; o < weight.rows; ++o) {
      float* row = weight.row(o);
      for (std::size_t k = 0; k < channels.size(); ++k) row[k] *= scale[static_cast<std::size_t>(channels[k])];
    }
  }
  const models::FoldProducer& producer = block.spec.stages[stage_idx].fold_producer;
  if (producer.kind == models::FoldProducer::Kind::Norm) {
    divide_norm(block, producer.module, scale);
  } else {
    divide_rows(find_linear(block, producer.module), scale);
  }
}

}  // namespace nibble::quantize
