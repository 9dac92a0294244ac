#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/host_sampling.h"
#include "core/error.h"
#include "gpu.h"

namespace nibble::backend::cuda {
namespace {

/// Rows of logits in a few typical shapes, with ties.
std::vector<float> random_logits(std::int64_t vocab_size, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto chance = [&] { return std::uniform_real_distribution<float>(0, 1)(random); };
  const float scale = std::vector<float>{0.0F, 0.01F, 1.0F, 3.0F, 10.0F, 100.0F}[random() % 6];
  const float shift = std::vector<float>{0.0F, -20.0F, 7.0F}[random() % 3];
  const bool has_ties = chance() < 0.4F;
  std::vector<float> logits(static_cast<std::size_t>(vocab_size));
  for (float& logit : logits) {
    logit = normal(random) * scale + shift;
    if (has_ties) logit = std::round(logit * 4) / 4;
  }
  if (chance() < 0.5F) {  // a few that stand out, as a model's do
    for (int i = 0; i < 20; ++i) logits[random() % logits.size()] += 8 * chance();
  }
  return logits;
}

/// A row of parameters and what its spans point to.
struct Row {
  SamplingRow row;
  std::vector<TokenCount> counts;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::vector<std::int32_t> banned;
  std::vector<std::uint32_t> allowed_mask;

  const SamplingRow& view() {
    row.counts = counts;
    row.logit_bias = logit_bias;
    row.banned = banned;
    row.allowed_mask = allowed_mask;
    return row;
  }
};

Row random_row(std::int64_t vocab_size, std::mt19937& random) {
  const auto chance = [&] { return std::uniform_real_distribution<float>(0, 1)(random); };
  const auto token = [&] { return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab_size)); };
  Row made;
  SamplingRow& row = made.row;
  row.temperature = chance() < 0.15F ? 0.0F : chance() < 0.3F ? 1.0F : 0.05F + 2 * chance();
  if (chance() < 0.4F) row.top_p = chance() < 0.1F ? 0.0F : chance();
  if (chance() < 0.3F) row.min_p = chance() * 0.5F;
  if (chance() < 0.4F) row.top_k = chance() < 0.8F ? 1 + static_cast<std::int32_t>(random() % 100) : token() + 1;
  row.seed = random();
  row.position = random() % 1000;
  if (chance() < 0.3F) {
    row.repetition_penalty = 0.5F + chance();
    row.presence_penalty = chance() < 0.5F ? 0 : 2 * chance() - 1;
    row.frequency_penalty = chance() < 0.5F ? 0 : 2 * chance() - 1;
    std::vector<bool> has(static_cast<std::size_t>(vocab_size));
    for (std::uint64_t i = random() % 300; i > 0; --i) {
      const std::int32_t counted = token();
      if (has[static_cast<std::size_t>(counted)]) continue;
      has[static_cast<std::size_t>(counted)] = true;
      made.counts.push_back(
          {counted, static_cast<std::int32_t>(random() % 3), static_cast<std::int32_t>(random() % 4)});
    }
  }
  if (chance() < 0.2F) {
    for (std::uint64_t i = random() % 40; i > 0; --i) made.logit_bias.emplace_back(token(), 20 * chance() - 10);
    if (!made.logit_bias.empty()) made.logit_bias.emplace_back(made.logit_bias.front().first, 0.7F);  // once more
  }
  if (chance() < 0.2F) {
    for (std::uint64_t i = random() % 5; i > 0; --i) made.banned.push_back(token());
  }
  if (chance() < 0.15F) {
    made.allowed_mask.resize(static_cast<std::size_t>((vocab_size + 31) / 32));
    const bool is_sparse = chance() < 0.5F;
    for (std::uint32_t& word : made.allowed_mask) {
      word = static_cast<std::uint32_t>(random());
      if (is_sparse) word &= static_cast<std::uint32_t>(random()) & static_cast<std::uint32_t>(random());
    }
  }
  if (chance() < 0.3F) row.num_logprobs = chance() < 0.9F ? static_cast<std::int32_t>(random() % 21) : 1500;
  return made;
}

std::string describe(const SamplingRow& row) {
  return "temperature " + std::to_string(row.temperature) + " top_p " + std::to_string(row.top_p) + " top_k " +
         std::to_string(row.top_k) + " min_p " + std::to_string(row.min_p) + " counts " +
         std::to_string(row.counts.size()) + " biases " + std::to_string(row.logit_bias.size()) + " banned " +
         std::to_string(row.banned.size()) + " mask " + std::to_string(row.allowed_mask.size()) + " logprobs " +
         std::to_string(row.num_logprobs);
}

class CudaSampling : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU";
    backend_ = make_cuda_backend({.num_threads = 1});
  }

  std::vector<SampledToken> sample(const std::vector<std::vector<float>>& logits,
                                   const std::vector<SamplingRow>& rows) {
    const auto num_rows = static_cast<std::int64_t>(rows.size());
    const auto vocab_size = static_cast<std::int64_t>(logits.front().size());
    Activation values = backend_->make_activation(num_rows, vocab_size, ActivationFormat{});
    std::vector<float> joined;
    for (const auto& row : logits) joined.insert(joined.end(), row.begin(), row.end());
    backend_->write({joined.data(), num_rows, vocab_size, vocab_size}, values);
    std::vector<SampledToken> sampled(rows.size());
    backend_->sample(values, rows, sampled);
    backend_->collect();
    return sampled;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaSampling, GivesTheHostsTokensForRandomRowsAndParameters) {
  std::mt19937 random(11);
  int num_rows = 0;
  int num_different = 0;
  for (const std::int64_t vocab_size : {257, 1000, 32000, 49152, 128256}) {
    for (int batch = 0; batch < 24; ++batch) {
      const std::size_t size = vocab_size < 40000 ? 32 : 12;
      std::vector<std::vector<float>> logits;
      std::vector<Row> made;
      std::vector<SamplingRow> rows;
      for (std::size_t r = 0; r < size; ++r) {
        logits.push_back(random_logits(vocab_size, random));
        made.push_back(random_row(vocab_size, random));
      }
      for (Row& row : made) rows.push_back(row.view());
      const std::vector<SampledToken> actual = sample(logits, rows);
      for (std::size_t r = 0; r < size; ++r) {
        const SampledToken expected = sample_row(logits[r], rows[r]);
        const auto what = describe(rows[r]) + ", vocab_size " + std::to_string(vocab_size);
        ++num_rows;
        EXPECT_EQ(actual[r].is_finite, expected.is_finite) << what;
        if (!expected.is_finite) continue;
        if (actual[r].token != expected.token) {
          ++num_different;
          printf("host %d, device %d: %s\n", expected.token, actual[r].token, what.c_str());
          continue;
        }
        EXPECT_NEAR(actual[r].logprob, expected.logprob, 2e-6F * (1 + std::abs(expected.logprob))) << what;
        ASSERT_EQ(actual[r].top_logprobs.size(), expected.top_logprobs.size()) << what;
        for (std::size_t i = 0; i < expected.top_logprobs.size(); ++i) {
          EXPECT_EQ(actual[r].top_logprobs[i].first, expected.top_logprobs[i].first) << what;
          EXPECT_NEAR(actual[r].top_logprobs[i].second, expected.top_logprobs[i].second,
                      2e-6F * (1 + std::abs(expected.top_logprobs[i].second)))
              << what;
        }
      }
    }
  }
  // The host adds probabilities in f64, the device as integers: a draw or a top_p limit between two tokens may fall to
  // either side, about once in 1e8 rows that are not flat.
  EXPECT_LE(num_different, num_rows / 1000) << "of " << num_rows;
}

TEST_F(CudaSampling, DrawsFromAFlatRowOfEqualLogitsByIdAndBestFirst) {
  const std::vector<float> flat(128256, 1.5F);
  std::vector<SamplingRow> rows;
  for (std::uint64_t p = 0; p < 20; ++p) rows.push_back({.temperature = 1, .seed = 3, .position = p});
  for (std::uint64_t p = 0; p < 20; ++p) rows.push_back({.temperature = 0.7F, .top_p = 0.5F, .seed = 3, .position = p});
  for (std::uint64_t p = 0; p < 20; ++p) {
    rows.push_back({.temperature = 1, .top_k = 100000, .seed = 3, .position = p, .num_logprobs = 5});
  }
  const auto actual = sample(std::vector(rows.size(), flat), rows);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::vector<float> logits = flat;
    EXPECT_EQ(actual[r].token, sample_row(logits, rows[r]).token) << describe(rows[r]);
  }
}

TEST_F(CudaSampling, ANanFailsItsRowAlone) {
  std::mt19937 random(3);
  std::vector<std::vector<float>> logits(4, random_logits(5000, random));
  logits[1][4999] = std::numeric_limits<float>::quiet_NaN();
  logits[2][7] = std::numeric_limits<float>::infinity();
  const std::vector<std::uint32_t> none((5000 + 31) / 32, 0);
  std::vector<SamplingRow> rows(4, SamplingRow{.temperature = 1, .num_logprobs = 3});
  rows[3].allowed_mask = none;
  const auto sampled = sample(logits, rows);
  EXPECT_TRUE(sampled[0].is_finite);
  EXPECT_FALSE(sampled[1].is_finite);
  EXPECT_FALSE(sampled[2].is_finite);
  EXPECT_FALSE(sampled[3].is_finite);
}

TEST_F(CudaSampling, TwoLaunchesAreCollectedInTheirOrder) {
  std::mt19937 random(4);
  const std::vector<SamplingRow> rows{{.temperature = 0}, {.temperature = 0.9F, .top_k = 40, .seed = 1}};
  std::vector<Activation> values;
  std::vector<std::vector<std::vector<float>>> logits;
  std::vector<std::vector<SampledToken>> sampled(6, std::vector<SampledToken>(2));
  for (int step = 0; step < 6; ++step) {
    logits.push_back({random_logits(3000, random), random_logits(3000, random)});
    values.push_back(backend_->make_activation(2, 3000, ActivationFormat{}));
    std::vector<float> joined = logits.back()[0];
    joined.insert(joined.end(), logits.back()[1].begin(), logits.back()[1].end());
    backend_->write({joined.data(), 2, 3000, 3000}, values.back());
  }
  for (std::size_t step = 0; step < 6; ++step) {
    backend_->sample(values[step], rows, sampled[step]);
    if (step > 0) backend_->collect();
  }
  backend_->collect();
  for (std::size_t step = 0; step < 6; ++step) {
    for (std::size_t r = 0; r < 2; ++r) EXPECT_EQ(sampled[step][r].token, sample_row(logits[step][r], rows[r]).token);
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
