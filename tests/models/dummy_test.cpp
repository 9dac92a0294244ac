#include <gtest/gtest.h>

#include <cmath>

#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::models {
namespace {

TEST(DummyCheckpoint, MakesTheSameWeightsFromTheSameSeed) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto a = make_dummy_checkpoint(folder.path(), 1);
  const auto b = make_dummy_checkpoint(folder.path(), 1);
  const auto c = make_dummy_checkpoint(folder.path(), 2);
  const auto first = [](const formats::Checkpoint& checkpoint) {
    return weights::dequantize(checkpoint.linear("model.layers.0.mlp.up_proj", {128, 64}));
  };
  EXPECT_TRUE(std::ranges::equal(first(*a).span<float>(), first(*b).span<float>()));
  EXPECT_FALSE(std::ranges::equal(first(*a).span<float>(), first(*c).span<float>()));
}

TEST(DummyCheckpoint, IsQuantizedWhereConfigSaysSo) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(
      folder.path(), R"(, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32})");
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const auto weights = checkpoint->linear("model.layers.0.mlp.up_proj", {128, 64});
  ASSERT_TRUE(std::holds_alternative<weights::GroupedIntWeights>(weights));
  weights::validate(weights);
  double squares = 0;
  const Tensor dense = weights::dequantize(weights);
  for (const float value : dense.span<float>()) squares += static_cast<double>(value) * value;
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(dense.num_elements())), 0.02, 0.01);
}

TEST(DummyCheckpoint, MakesCodebooksForSqueezeLlm) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(
      folder.path(), R"(, "quantization_config": {"quant_method": "squeezellm", "wbits": 3, "sparsity": 0.03})");
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const auto weights = checkpoint->linear("model.layers.0.mlp.up_proj", {128, 64});
  ASSERT_TRUE(std::holds_alternative<weights::CodebookWeights>(weights));
  weights::validate(weights);
  EXPECT_EQ(std::get<weights::CodebookWeights>(weights).bits, 3);
  EXPECT_EQ(std::get<weights::CodebookWeights>(weights).vals.num_elements(), 128);
}

TEST(DummyCheckpoint, MakesOtherWeightsForEachModule) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const auto values = [&](const char* module) { return weights::dequantize(checkpoint->linear(module, {128, 64})); };
  const Tensor up = values("model.layers.0.mlp.up_proj");
  EXPECT_FALSE(std::ranges::equal(up.span<float>(), values("model.layers.0.mlp.gate_proj").span<float>()));
  EXPECT_FALSE(std::ranges::equal(up.span<float>(), values("model.layers.1.mlp.up_proj").span<float>()));
}

TEST(DummyCheckpoint, FillsTensorsLargerThanItsRandomNumbers) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const auto linear = checkpoint->linear("model.layers.0.mlp.up_proj", {4099, 4096});  // 33.6 MB: twice round
  const Tensor& weight = std::get<weights::DenseWeights>(linear).weight;
  std::int64_t num_negative = 0;
  for (const Half half : weight.span<Half>()) {
    ASSERT_EQ((half.bits >> 10) & 31, 9);
    num_negative += half.bits >> 15;
  }
  EXPECT_NEAR(static_cast<double>(num_negative) / static_cast<double>(weight.num_elements()), 0.5, 0.01);
}

TEST(Loader, LoadsAndRunsATinyModelOnTheReferenceBackend) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 7);
  const auto backend = backend::make_backend("reference", {.precision = backend::Precision::Exact, .num_threads = 1});
  const auto decoder = load_decoder(*checkpoint, *backend);
  decoder->reserve(8, 8);
  const auto cache = backend->make_kv_cache(decoder->kv_specs(DType::F32), 2, 4);
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5};
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 4};
  const std::vector<std::int32_t> query_start{0, 5};
  const std::vector<std::int32_t> context_len{5};
  const std::vector<std::int32_t> block_table{1, 0};
  const std::vector<std::int64_t> slots{4, 5, 6, 7, 0};
  const std::vector<std::int32_t> rows{4};
  const backend::ForwardBatch batch{.tokens = tokens,
                                    .positions = positions,
                                    .query_start = query_start,
                                    .context_len = context_len,
                                    .block_table = block_table,
                                    .block_table_stride = 2,
                                    .slot_mapping = slots,
                                    .logit_rows = rows};
  const auto& logits = decoder->step(batch, *cache, 1);
  ASSERT_EQ(logits.num_tokens, 1);
  ASSERT_EQ(logits.width(), 256);
  for (std::int64_t i = 0; i < 256; ++i) ASSERT_TRUE(std::isfinite(logits.values.matrix<float>().row(0)[i]));
}

}  // namespace
}  // namespace nibble::models
