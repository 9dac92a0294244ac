#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/reference/reference_backend.h"
#include "core/error.h"
#include "gpu.h"

namespace nibble::backend::cuda {
namespace {

/// Standard normal values that f16 holds exactly.
Tensor random_matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Tensor values = Tensor::empty(DType::F32, {rows, cols});
  for (float& value : values.span<float>()) value = to_float(to_half(normal(generator)));
  return values;
}

weights::LinearPart dense_part(const Tensor& weight, DType dtype, Tensor bias = {}) {
  return {weights::DenseWeights{to_dtype(weight, dtype)}, std::move(bias)};
}

/// Every operation of the CUDA backend against the reference backend on the same inputs.
class CudaOperations : public testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU";
    cuda_ = make_cuda_backend({.precision = GetParam(), .num_threads = 2});
    reference_ = make_reference_backend({.precision = Precision::Exact, .num_threads = 4});
  }

  /// Relative to the largest value: f32 sums in another order, or one rounding to f16.
  double tolerance() const { return GetParam() == Precision::Exact ? 3e-6 : 1.2e-3; }

  static Activation put(Backend& backend, const Tensor& values) {
    Activation activation = backend.make_activation(values.shape()[0] + 3, values.shape()[1], backend.hidden_format());
    backend.write(values.matrix<float>(), activation);
    return activation;
  }

  static Tensor get(Backend& backend, const Activation& activation) {
    Tensor values = Tensor::empty(DType::F32, {activation.num_tokens, activation.width()});
    backend.read(activation, values.matrix<float>());
    return values;
  }

  /// Keys and values are rounded once more in the cache, where a last bit of f32 may decide which way.
  double attention_tolerance(DType cache) const {
    if (cache == DType::F8E4M3) return 2e-2;
    return cache == DType::F16 ? std::max(tolerance(), 2e-4) : tolerance();
  }

  /// `run` makes the operation's result with one backend.
  template <class Run>
  void expect_same(Run run) {
    expect_same(tolerance(), run);
  }
  template <class Run>
  void expect_same(double tolerance, Run run) {
    const Tensor expected = run(*reference_);
    const Tensor actual = run(*cuda_);
    ASSERT_EQ(actual.shape(), expected.shape());
    float largest = 0;
    for (const float value : expected.span<float>()) largest = std::max(largest, std::abs(value));
    ASSERT_GT(largest, 0.0F);
    for (std::size_t i = 0; i < expected.span<float>().size(); ++i) {
      ASSERT_NEAR(actual.span<float>()[i], expected.span<float>()[i], tolerance * largest) << "element " << i;
    }
    const Tensor again = run(*cuda_);
    EXPECT_TRUE(std::ranges::equal(again.span<float>(), actual.span<float>())) << "differs from run to run";
  }

  std::unique_ptr<Backend> cuda_;
  std::unique_ptr<Backend> reference_;
};

TEST_P(CudaOperations, LinearMultipliesFewAndManyTokensByAllParts) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes = {{576, 1536}, {1536, 576}, {64, 100}, {20, 7}};
  for (const auto& [in, out] : shapes) {
    const Tensor first = random_matrix(out, in, 1);
    const Tensor second = random_matrix(2 * out, in, 2);
    const Tensor bias = random_matrix(1, out, 3);
    for (const std::int64_t num_tokens : {1, 2, 3, 5, 8, 9, 40, 300}) {
      SCOPED_TRACE(testing::Message() << in << " -> " << out << ", tokens " << num_tokens);
      const Tensor x = random_matrix(num_tokens, in, static_cast<std::uint32_t>(10 + num_tokens));
      expect_same([&](Backend& backend) {
        std::vector<weights::LinearPart> parts;
        Tensor bias_row = Tensor::empty(DType::F32, {out});
        std::ranges::copy(bias.span<float>(), bias_row.span<float>().begin());
        parts.push_back(dense_part(first, DType::BF16, std::move(bias_row)));
        parts.push_back(dense_part(second, DType::F32));
        const auto linear = backend.make_linear(std::move(parts), {.name = "linear"});
        Activation y = backend.make_activation(num_tokens, 3 * out, backend.hidden_format());
        linear->forward(put(backend, x), y);
        return get(backend, y);
      });
    }
  }
}

TEST_P(CudaOperations, LinearWritesLogitsInF32) {
  const Tensor weight = random_matrix(1000, 64, 4);
  for (const std::int64_t num_tokens : {1, 20}) {
    const Tensor x = random_matrix(num_tokens, 64, 5);
    expect_same([&](Backend& backend) {
      std::vector<weights::LinearPart> parts;
      parts.push_back(dense_part(weight, DType::F16));
      const auto linear = backend.make_linear(std::move(parts), {.name = "lm_head", .is_lm_head = true});
      Activation y = backend.make_activation(num_tokens, 1000, ActivationFormat{});
      linear->forward(put(backend, x), y);
      EXPECT_EQ(y.values.dtype(), DType::F32);
      return get(backend, y);
    });
  }
}

TEST_P(CudaOperations, RowOperationsAgree) {
  const Tensor a = random_matrix(37, 1152, 6);
  const Tensor b = random_matrix(37, 1152, 7);
  const std::vector<std::int32_t> rows = {1, 3, 3, 36, 0};
  std::vector<std::int32_t> indices(37);
  std::iota(indices.begin(), indices.end(), 0);
  const std::vector<std::int64_t> slots(indices.begin(), indices.end());
  const std::vector<std::int32_t> query_start = {0, 37}, context_len = {37}, blocks = {0, 1, 2};
  expect_same([&](Backend& backend) {
    Activation hidden = put(backend, a);
    backend.add(hidden, put(backend, b));
    return get(backend, hidden);
  });
  expect_same([&](Backend& backend) {
    Activation out = backend.make_activation(40, 576, backend.hidden_format());
    backend.silu_mul(put(backend, a), out);
    return get(backend, out);
  });
  expect_same([&](Backend& backend) {
    const auto cache = backend.make_kv_cache({{.dtype = DType::F16, .num_kv_heads = 1, .head_dim = 64}}, 3, 16);
    const ForwardBatch batch{.tokens = indices,
                             .positions = indices,
                             .query_start = query_start,
                             .context_len = context_len,
                             .block_table = blocks,
                             .block_table_stride = 3,
                             .slot_mapping = slots,
                             .logit_rows = rows};
    backend.prepare_step(batch, *cache);
    Activation out = backend.make_activation(8, 1152, backend.hidden_format());
    backend.gather_rows(put(backend, a), batch, 1, 4, out);
    return get(backend, out);
  });
  expect_same([&](Backend& backend) {
    const Tensor weight = backend.make_vector(TensorView(b.span<float>().data(), DType::F32, {1152}));
    Activation hidden = put(backend, a);
    const Activation delta = put(backend, b);
    Activation out = backend.make_activation(40, 1152, backend.hidden_format());
    backend.norm(hidden, &delta, weight, 1e-5F, out);
    return get(backend, out);
  });
}

struct Heads {
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  DType cache;
  std::int32_t window;
  float k_scale = 1;
  float v_scale = 1;
};

TEST_P(CudaOperations, RopeAndAttentionAgreeForPrefillAndDecodeInOneStep) {
  const std::vector<Heads> cases = {{9, 3, 64, DType::F16, 0},
                                    {8, 1, 128, DType::F16, 0},
                                    {2, 2, 80, DType::F32, 0},
                                    {3, 1, 20, DType::F16, 0},
                                    {4, 2, 32, DType::F16, 50},
                                    {4, 1, 256, DType::F16, 0},
                                    {4, 1, 64, DType::F8E4M3, 0, 0.02F, 0.03F}};
  constexpr std::int32_t kBlockSize = 16;
  constexpr std::int64_t kLength = 300;
  constexpr std::int64_t kBlocks = 20;  // of a sequence; the two sequences' blocks alternate
  for (const Heads& heads : cases) {
    SCOPED_TRACE(testing::Message() << heads.num_heads << " heads of " << heads.head_dim);
    const AttentionSpec spec{.num_heads = heads.num_heads,
                             .num_kv_heads = heads.num_kv_heads,
                             .head_dim = heads.head_dim,
                             .scale = 1.0F / std::sqrt(static_cast<float>(heads.head_dim)),
                             .sliding_window = heads.window};
    const std::int64_t width = spec.q_width() + 2 * spec.kv_width();
    const Tensor qkv = random_matrix(2 * kLength, width, 8);
    std::vector<float> inv_freq(static_cast<std::size_t>(heads.head_dim / 2));
    for (std::size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = std::pow(0.7F, static_cast<float>(i));
    expect_same(attention_tolerance(heads.cache), [&](Backend& backend) {
      const auto rope = backend.make_rope({.inv_freq = inv_freq, .attention_factor = 1, .max_positions = kLength});
      const auto cache = backend.make_kv_cache({{.dtype = heads.cache,
                                                 .num_heads = heads.num_heads,
                                                 .num_kv_heads = heads.num_kv_heads,
                                                 .head_dim = heads.head_dim,
                                                 .sliding_window = heads.window,
                                                 .k_scale = heads.k_scale,
                                                 .v_scale = heads.v_scale}},
                                               2 * kBlocks, kBlockSize);
      std::vector<float> results;
      // Sequence 0 but its last token; then sequence 1 whole and that last token in one step.
      for (const auto& [first, last] :
           {std::pair<std::int64_t, std::int64_t>{0, kLength - 1}, {kLength - 1, kLength}}) {
        std::vector<std::int32_t> tokens, positions, query_start{0}, context_len, table;
        std::vector<std::int64_t> slots;
        std::vector<float> rows;
        const auto take = [&](std::int64_t sequence, std::int64_t begin, std::int64_t end) {
          for (std::int64_t p = begin; p < end; ++p) {
            tokens.push_back(0);
            positions.push_back(static_cast<std::int32_t>(p));
            slots.push_back((p / kBlockSize * 2 + sequence) * kBlockSize + p % kBlockSize);
            const auto row = qkv.matrix<float>().row_span(sequence * kLength + p);
            rows.insert(rows.end(), row.begin(), row.end());
          }
          for (std::int64_t b = 0; b < kBlocks; ++b) table.push_back(static_cast<std::int32_t>(2 * b + sequence));
          query_start.push_back(static_cast<std::int32_t>(tokens.size()));
          context_len.push_back(static_cast<std::int32_t>(end));
        };
        take(0, first, last);
        if (first > 0) take(1, 0, kLength);
        const ForwardBatch batch{.tokens = tokens,
                                 .positions = positions,
                                 .query_start = query_start,
                                 .context_len = context_len,
                                 .block_table = table,
                                 .block_table_stride = kBlocks,
                                 .slot_mapping = slots,
                                 .logit_rows = {}};
        backend.prepare_step(batch, *cache);
        Tensor input = Tensor::empty(DType::F32, {batch.num_tokens(), width});
        std::ranges::copy(rows, input.span<float>().begin());
        Activation x = put(backend, input);
        Activation out = backend.make_activation(batch.num_tokens(), spec.q_width(), backend.hidden_format());
        backend.rope_kv_write(x, spec, *rope, *cache, 0, batch);
        backend.attention(x, spec, *cache, 0, batch, out);
        const Tensor values = get(backend, out);
        results.insert(results.end(), values.span<float>().begin(), values.span<float>().end());
      }
      Tensor joined = Tensor::empty(DType::F32, {2 * kLength, spec.q_width()});
      std::ranges::copy(results, joined.span<float>().begin());
      return joined;
    });
  }
}

TEST_P(CudaOperations, SampleAndEmbedAgree) {
  const Tensor table = random_matrix(500, 576, 9);
  std::vector<std::int32_t> tokens = {0, 499, 17, 17};
  std::vector<std::int32_t> positions = {0, 1, 2, 3};
  const std::vector<std::int32_t> query_start = {0, 4}, context_len = {4}, blocks = {0};
  const std::vector<std::int64_t> slots = {0, 1, 2, 3};
  const ForwardBatch batch{.tokens = tokens,
                           .positions = positions,
                           .query_start = query_start,
                           .context_len = context_len,
                           .block_table = blocks,
                           .block_table_stride = 1,
                           .slot_mapping = slots,
                           .logit_rows = {}};
  expect_same([&](Backend& backend) {
    const auto cache = backend.make_kv_cache({{.dtype = DType::F16, .num_kv_heads = 1, .head_dim = 64}}, 1, 16);
    backend.prepare_step(batch, *cache);
    const auto embedding = backend.make_embedding({to_dtype(table, DType::F16)});
    Activation hidden = backend.make_activation(8, 576, backend.hidden_format());
    backend.embed(*embedding, batch, hidden);
    return get(backend, hidden);
  });
  const Tensor logits = random_matrix(3, 500, 10);
  const std::vector<SamplingRow> rows = {{.temperature = 0},
                                         {.temperature = 0.8F, .top_p = 0.9F, .seed = 4},
                                         {.temperature = 1, .top_k = 5, .seed = 5, .num_logprobs = 3}};
  std::vector<SampledToken> expected(3), actual(3);
  for (Backend* backend : {reference_.get(), cuda_.get()}) {
    Activation values = backend->make_activation(4, 500, ActivationFormat{});
    backend->write(logits.matrix<float>(), values);
    backend->sample(values, rows, backend == cuda_.get() ? actual : expected);
    backend->collect();
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    EXPECT_EQ(actual[r].token, expected[r].token);
    ASSERT_EQ(actual[r].top_logprobs.size(), expected[r].top_logprobs.size());
    for (std::size_t i = 0; i < expected[r].top_logprobs.size(); ++i) {
      EXPECT_EQ(actual[r].top_logprobs[i].first, expected[r].top_logprobs[i].first);
      EXPECT_NEAR(actual[r].top_logprobs[i].second, expected[r].top_logprobs[i].second, 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, CudaOperations, testing::Values(Precision::Fast, Precision::Exact),
                         [](const auto& named) { return named.param == Precision::Fast ? "Fast" : "Exact"; });

TEST(CudaBackend, RefusesWhatItCannotRunByName) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const auto backend = make_cuda_backend({});
  std::vector<weights::LinearPart> parts;
  Tensor huge = random_matrix(8, 8, 1);
  huge.span<float>()[5] = 1e5F;
  parts.push_back(dense_part(huge, DType::F32));
  try {
    backend->make_linear(std::move(parts), {.name = "model.layers.0.mlp.down_proj"});
    FAIL() << "a weight of 1e5 became infinity";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    EXPECT_NE(std::string(error.what()).find("model.layers.0.mlp.down_proj"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
