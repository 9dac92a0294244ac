#include "quantize/loss_walk.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "core/file.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

constexpr LossNeeds kAll{.fisher = true, .guided_gram = true, .gram = true};

class LossWalkTest : public ::testing::Test {
 protected:
  LossWalkTest() {
    write_tiny_model(folder_ / "model");
    checkpoint_ = formats::Checkpoint::open(folder_ / "model");
    plan_.config = models::parse_model_config(checkpoint_->config());
    plan_.architecture = &models::find_architecture("LlamaForCausalLM");
    for (std::int64_t b = 0; b < 2; ++b) plan_.blocks.push_back(plan_.architecture->block(plan_.config, b));
    samples_.num_samples = 45;  // 20 to a batch of 2048 tokens: two full batches and a part
    samples_.seq_len = 100;
    for (std::int32_t t = 0; t < 4500; ++t) samples_.tokens.push_back((t * 37 + t / 100) % 256);
  }

  struct Result {
    double loss = 0;
    std::vector<std::vector<StageLossStatistics>> blocks;  // as the model's
  };
  Result run(const LossOptions& options, int threads = 2, const LossNeeds& needs = kAll) const {
    const auto backend =
        backend::make_backend("reference", {.precision = backend::Precision::Exact, .num_threads = threads});
    LossWalk walk(*checkpoint_, plan_, *backend, samples_, options, needs, folder_ / "block-inputs");
    Result result;
    result.loss = walk.forward();
    result.blocks.resize(2);
    for (const std::int64_t b : {1, 0}) {
      result.blocks[static_cast<std::size_t>(b)] =
          walk.backward(load_float_block(*checkpoint_, plan_.blocks[static_cast<std::size_t>(b)]), b);
    }
    return result;
  }

  TemporaryFolder folder_;
  std::unique_ptr<formats::Checkpoint> checkpoint_;
  Plan plan_;
  CalibrationSamples samples_;
};

bool same_statistics(const LossStatistics& a, const LossStatistics& b) {
  return same_bytes(a.fisher, b.fisher) && same_bytes(a.guided_gram, b.guided_gram);
}

double trace(const Tensor& square) {
  double sum = 0;
  for (std::int64_t i = 0; i < square.shape()[0]; ++i) sum += square.matrix<float>().row(i)[i];
  return sum;
}

TEST_F(LossWalkTest, StatisticsAreTheSameForAnyNumberOfThreads) {
  const Result one = run({}, 1);
  const Result three = run({}, 3);
  EXPECT_EQ(one.loss, three.loss);
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t s = 0; s < 4; ++s) {
      EXPECT_TRUE(same_bytes(one.blocks[b][s].gram, three.blocks[b][s].gram));
      for (std::size_t i = 0; i < one.blocks[b][s].linears.size(); ++i) {
        EXPECT_TRUE(same_statistics(one.blocks[b][s].linears[i], three.blocks[b][s].linears[i])) << b << s << i;
      }
    }
  }
}

// Σ_t s_t x_k² = mean_n Σ_t (δ_n x_k)²: the guided Gram matrix's diagonal is the column mean of the token Fisher.
TEST_F(LossWalkTest, GuidedDiagonalIsTheMeanOfTheTokenFisher) {
  const Result result = run({});
  for (const StageLossStatistics& stage : result.blocks[0]) {
    EXPECT_EQ(stage.num_tokens, 4500);
    for (const LossStatistics& linear : stage.linears) {
      const auto fisher = linear.fisher.matrix<float>();
      for (std::int64_t k = 0; k < fisher.cols; k += 5) {
        double mean = 0;
        for (std::int64_t o = 0; o < fisher.rows; ++o) mean += fisher.row(o)[k] / static_cast<double>(fisher.rows);
        EXPECT_NEAR(linear.guided_gram.matrix<float>().row(k)[k], mean, 1e-4 * mean);
      }
    }
  }
}

TEST_F(LossWalkTest, SampledLabelsFollowTheSeedAndCostTheModelsEntropy) {
  const Result first = run({.seed = 1});
  const Result second = run({.seed = 2});
  EXPECT_FALSE(same_statistics(first.blocks[0][0].linears[0], second.blocks[0][0].linears[0]));
  EXPECT_NEAR(first.loss, second.loss, 0.1);
  // The tiny model knows nothing of this text: its own labels are likelier than the text's.
  EXPECT_LT(first.loss, run({.labels = LossLabels::Text}).loss);
}

TEST_F(LossWalkTest, OnlyWhatIsNeededIsComputed) {
  const Result result = run({}, 2, {.guided_gram = true});
  const StageLossStatistics& stage = result.blocks[1][3];
  EXPECT_TRUE(stage.gram.is_empty());
  EXPECT_TRUE(stage.linears[0].fisher.is_empty());
  EXPECT_GT(trace(stage.linears[0].guided_gram), 0);
}

TEST_F(LossWalkTest, MissingHeadIsNamedAndNotReplacedByTheEmbedding) {
  plan_.config.tie_word_embeddings = false;
  try {
    run({});
    FAIL() << "ran without lm_head";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFound);
    EXPECT_NE(std::string(error.what()).find("lm_head"), std::string::npos);
  }
}

TEST_F(LossWalkTest, AnotherWalkGoesOnFromWhatWasKept) {
  const Result whole = run({});
  const auto backend = backend::make_backend("reference", {.precision = backend::Precision::Exact, .num_threads = 2});
  const auto walk = [&] {
    return LossWalk(*checkpoint_, plan_, *backend, samples_, {}, kAll, folder_ / "block-inputs");
  };
  {
    LossWalk first = walk();
    first.forward();
    first.backward(load_float_block(*checkpoint_, plan_.blocks[1]), 1);
    first.save(folder_ / "gradient");
  }
  LossWalk second = walk();
  second.restore(folder_ / "gradient");
  const auto statistics = second.backward(load_float_block(*checkpoint_, plan_.blocks[0]), 0);
  for (std::size_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(same_statistics(statistics[s].linears[0], whole.blocks[0][s].linears[0])) << s;
  }
  write_text_file(folder_ / "gradient", "too short");
  EXPECT_THROW(walk().restore(folder_ / "gradient"), Error);
}

}  // namespace
}  // namespace nibble::quantize
