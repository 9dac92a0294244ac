#include "engine/layer_outer_engine.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/error.h"
#include "support/tiny_model.h"

namespace nibble::engine {
namespace {

using testing_support::TemporaryFolder;
using testing_support::write_tiny_config;

std::vector<std::int32_t> tokens_of(std::int32_t first, std::int32_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t t = 0; t < count; ++t) tokens.push_back((first + 37 * t) % 256);
  return tokens;
}

std::vector<float> logits_of(Engine& engine, const std::vector<std::int32_t>& tokens) {
  std::vector<float> logits;
  engine.score(tokens, [&](const LogitTile& tile) {
    EXPECT_EQ(static_cast<std::size_t>(tile.first_position * tile.logits.cols), logits.size());
    for (std::int64_t r = 0; r < tile.logits.rows; ++r) {
      logits.insert(logits.end(), tile.logits.row(r), tile.logits.row(r) + tile.logits.cols);
    }
  });
  return logits;
}

class LayerOuterTest : public ::testing::TestWithParam<const char*> {
 protected:
  LayerOuterTest() { write_tiny_config(folder_.path(), GetParam()); }
  EngineOptions options() const {
    EngineOptions options;
    options.load_format = "dummy";
    options.num_threads = 2;
    options.max_num_batched_tokens = 48;  // sequences take several steps
    options.kv_cache_memory_bytes = 1 << 20;
    return options;
  }
  TemporaryFolder folder_;
};

TEST_P(LayerOuterTest, GivesTheEnginesLogitsToTheLastBit) {
  for (const bool exact : {false, true}) {
    EngineOptions both = options();
    both.exact = exact;
    const auto whole = Engine::load(folder_.path(), both);
    const auto by_block = LayerOuterEngine::open(folder_.path(), both);
    const std::vector<std::vector<std::int32_t>> sequences = {tokens_of(1, 100), tokens_of(9, 7), tokens_of(80, 200)};
    by_block->prefetch(sequences);
    for (const auto& tokens : sequences) {
      const std::vector<float> expected = logits_of(*whole, tokens);
      const std::vector<float> logits = logits_of(*by_block, tokens);
      ASSERT_EQ(logits.size(), expected.size());
      EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)), 0);
    }
    EXPECT_EQ(by_block->config().num_hidden_layers, 2);
    EXPECT_GT(by_block->weight_bytes(), 0);
  }
}

TEST_P(LayerOuterTest, ScoresOnlyWhatItWasGivenAndOnce) {
  const auto engine = LayerOuterEngine::open(folder_.path(), options());
  const auto ignore = [](const LogitTile&) {};
  EXPECT_THROW(engine->score(tokens_of(1, 5), ignore), Error);
  engine->prefetch({tokens_of(1, 5)});
  EXPECT_THROW(engine->score(tokens_of(2, 5), ignore), Error);
  engine->score(tokens_of(1, 5), ignore);
  EXPECT_THROW(engine->score(tokens_of(1, 5), ignore), Error);
  EXPECT_THROW(engine->submit({}), Error);
  EXPECT_THROW(engine->prefetch({{1, 256}}), Error);
  EXPECT_THROW(engine->prefetch({{}}), Error);
  EXPECT_THROW(engine->prefetch({tokens_of(1, 257)}), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, LayerOuterTest,
                         ::testing::Values("", R"(, "quantization_config": {"quant_method": "awq", "bits": 4,
                                                 "group_size": 32})"));

}  // namespace
}  // namespace nibble::engine
