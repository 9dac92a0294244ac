#include "quantize/awq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "random_layer.h"

namespace nibble::quantize {
namespace {

constexpr GridFormat kFormat{4, Symmetry::Asymmetric};

StageInputs stage_inputs(const Tensor& x, ThreadPool& pool) {
  StageInputs inputs;
  inputs.num_tokens = x.shape()[0];
  inputs.gram = gram_of(x, pool);
  inputs.mean_magnitude = Tensor::zeros(DType::F32, {x.shape()[1]});
  for (std::int64_t t = 0; t < inputs.num_tokens; ++t) {
    for (std::int64_t k = 0; k < x.shape()[1]; ++k) {
      inputs.mean_magnitude.span<float>()[static_cast<std::size_t>(k)] +=
          std::abs(x.matrix<float>().row(t)[k]) / static_cast<float>(inputs.num_tokens);
    }
  }
  return inputs;
}

std::vector<std::int32_t> own_channels(std::int64_t count) {
  std::vector<std::int32_t> channels(static_cast<std::size_t>(count));
  std::iota(channels.begin(), channels.end(), 0);
  return channels;
}

TEST(AwqScaleSearch, HelpsWhereAFewChannelsCarryTheOutput) {
  ThreadPool pool(2);
  Tensor x = random_matrix(300, 128, 1);
  for (std::int64_t t = 0; t < 300; ++t) {
    for (const std::int64_t k : {3, 40, 90}) x.matrix<float>().row(t)[k] *= 30;
  }
  std::vector<FloatLinear> linears;
  linears.push_back({"q", random_matrix(96, 128, 2), {}});
  linears.push_back({"k", random_matrix(40, 128, 3), {}});
  const ScaleSearch search = search_scale(linears, stage_inputs(x, pool), own_channels(128), 64, kFormat, pool);
  EXPECT_LT(search.best_error, 0.5 * search.identity_error);
  EXPECT_GT(search.scale[3], search.scale[4]);
}

TEST(AwqScaleSearch, IsNeverWorseThanTheIdentity) {
  ThreadPool pool(2);
  for (std::uint32_t seed = 0; seed < 6; ++seed) {
    std::vector<FloatLinear> linears;
    linears.push_back({"o", random_matrix(64, 64, seed), {}});
    const Tensor x = seed % 2 == 0 ? random_matrix(100, 64, 50 + seed) : correlated_inputs(100, 64, 50 + seed);
    const ScaleSearch search = search_scale(linears, stage_inputs(x, pool), own_channels(64), 32, kFormat, pool);
    EXPECT_LE(search.best_error, search.identity_error);
  }
}

models::BlockSpec tiny_spec() {
  models::BlockSpec spec;
  spec.prefix = "model.layers.0";
  spec.hidden_size = 32;
  spec.intermediate_size = 64;
  spec.attention.num_heads = 4;
  spec.attention.num_kv_heads = 2;
  spec.attention.head_dim = 8;
  using Kind = models::FoldProducer::Kind;
  spec.stages.resize(4);
  spec.stages[0].linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
  spec.stages[0].fold_producer = {Kind::Norm, "input_layernorm"};
  spec.stages[1].linears = {"self_attn.o_proj"};
  spec.stages[1].fold_producer = {Kind::LinearByHead, "self_attn.v_proj"};
  spec.stages[2].linears = {"mlp.gate_proj", "mlp.up_proj"};
  spec.stages[2].fold_producer = {Kind::Norm, "post_attention_layernorm"};
  spec.stages[3].linears = {"mlp.down_proj"};
  spec.stages[3].fold_producer = {Kind::Linear, "mlp.up_proj"};
  return spec;
}

FloatBlock random_block() {
  FloatBlock block;
  block.spec = tiny_spec();
  std::uint32_t seed = 20;
  for (const models::Stage& stage : block.spec.stages) {
    auto& linears = block.stages.emplace_back();
    for (const std::string& name : stage.linears) {
      const Shape shape = models::linear_shape(block.spec, name);
      linears.push_back({name, random_matrix(shape[0], shape[1], seed++), {}});
    }
  }
  for (Tensor* norm : {&block.input_norm, &block.post_attention_norm}) {
    *norm = Tensor::empty(DType::F32, {32});
    for (float& w : norm->span<float>()) w = 1 + 0.01f * static_cast<float>(seed++ % 17);
  }
  return block;
}

/// row o of W applied to diag(scale of each input): what the linear sees of its producer's channel scales.
std::vector<float> column(const FloatLinear& linear, std::int64_t k) {
  std::vector<float> values;
  for (std::int64_t o = 0; o < linear.weight.shape()[0]; ++o) values.push_back(linear.weight.matrix<float>().row(o)[k]);
  return values;
}

TEST(AwqFold, NormTimesColumnsStaysTheSame) {
  FloatBlock block = random_block();
  const FloatBlock before = random_block();
  std::vector<float> scale(32);
  for (std::size_t c = 0; c < scale.size(); ++c) scale[c] = 0.3f + 0.2f * static_cast<float>(c);
  fold_scale(block, 0, scale);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::int64_t k = 0; k < 32; ++k) {
      const auto now = column(block.stages[0][i], k);
      const auto then = column(before.stages[0][i], k);
      const auto channel = static_cast<std::size_t>(k);
      for (std::size_t o = 0; o < now.size(); ++o) {
        EXPECT_NEAR(now[o] * block.input_norm.span<float>()[channel],
                    then[o] * before.input_norm.span<float>()[channel], 1e-5 * std::abs(then[o]) + 1e-7);
      }
    }
  }
}

TEST(AwqFold, RouterReadsTheScaledNormToo) {
  // As in Mixtral: the router and every expert's gate and up share one input.
  FloatBlock block = random_block();
  block.spec.stages[2].linears = {"mlp.gate_proj", "mlp.up_proj", "block_sparse_moe.gate"};
  block.stages[2].push_back({"block_sparse_moe.gate", random_matrix(4, 32, 99), {}});
  const FloatLinear before = {"block_sparse_moe.gate", random_matrix(4, 32, 99), {}};
  const Tensor norm_before = random_block().post_attention_norm;
  std::vector<float> scale(32);
  for (std::size_t c = 0; c < scale.size(); ++c) scale[c] = 0.3f + 0.2f * static_cast<float>(c);
  fold_scale(block, 2, scale);
  for (std::int64_t k = 0; k < 32; ++k) {
    const auto channel = static_cast<std::size_t>(k);
    const auto now = column(block.stages[2][2], k);
    const auto then = column(before, k);
    for (std::size_t o = 0; o < now.size(); ++o) {
      const float logit = then[o] * norm_before.span<float>()[channel];
      EXPECT_NE(now[o], then[o]);
      EXPECT_NEAR(now[o] * block.post_attention_norm.span<float>()[channel], logit, 1e-5 * std::abs(logit) + 1e-7);
    }
  }
}

TEST(AwqFold, EveryQueryHeadFollowsItsValueHead) {
  FloatBlock block = random_block();
  const FloatBlock before = random_block();
  std::vector<float> scale(16);
  for (std::size_t c = 0; c < scale.size(); ++c) scale[c] = 0.5f + 0.25f * static_cast<float>(c);
  fold_scale(block, 1, scale);
  // Query heads 0, 1 read value head 0; 2, 3 read value head 1: input (h, d) of o is row (h / 2, d) of v.
  for (std::int64_t k = 0; k < 32; ++k) {
    const std::int64_t v_row = k / 8 / 2 * 8 + k % 8;
    const float v_now = block.stages[0][2].weight.matrix<float>().row(v_row)[5];
    const float v_then = before.stages[0][2].weight.matrix<float>().row(v_row)[5];
    const auto now = column(block.stages[1][0], k);
    const auto then = column(before.stages[1][0], k);
    for (std::size_t o = 0; o < now.size(); ++o) {
      EXPECT_NEAR(now[o] * v_now, then[o] * v_then, 1e-5 * std::abs(then[o] * v_then) + 1e-7);
    }
  }
}

TEST(AwqFold, UpRowsAreDividedAndBiasesToo) {
  FloatBlock block = random_block();
  block.stages[2][1].bias = Tensor::empty(DType::F32, {64});
  for (float& b : block.stages[2][1].bias.span<float>()) b = 3;
  fold_scale(block, 3, std::vector<float>(64, 4.0f));
  EXPECT_EQ(block.stages[2][1].bias.span<float>()[7], 0.75f);
  const FloatBlock before = random_block();
  EXPECT_EQ(block.stages[2][1].weight.matrix<float>().row(9)[2],
            before.stages[2][1].weight.matrix<float>().row(9)[2] / 4);
  EXPECT_EQ(block.stages[3][0].weight.matrix<float>().row(9)[2],
            before.stages[3][0].weight.matrix<float>().row(9)[2] * 4);
}

}  // namespace
}  // namespace nibble::quantize
