#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::models {
namespace {

/// A token's logits must not depend on what else is in its batch, on how its prompt was cut into steps, or on threads:
/// a client gets the same answer alone and among a hundred others.
struct Setting {
  std::string label;
  std::string backend;
  backend::Precision precision;
  std::string config;  // merged into config.json
  DType cache_dtype = DType::F16;
};

std::ostream& operator<<(std::ostream& out, const Setting& setting) {
  return out << setting.label;
}

constexpr const char* kGptq = R"(, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32})";
constexpr const char* kFp8 = R"(, "quantization_config": {"quant_method": "fp8"})";
constexpr const char* kGptq3 = R"(, "quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 64})";

const std::vector<Setting> kSettings{
    {"Reference", "reference", backend::Precision::Exact, kGptq},
    {"CpuF16", "cpu", backend::Precision::Fast, ""},
    {"CpuGptq4", "cpu", backend::Precision::Fast, kGptq},
    {"CpuGptq3", "cpu", backend::Precision::Fast, kGptq3},
    {"CpuGptq4Exact", "cpu", backend::Precision::Exact, kGptq},
    {"CpuFp8", "cpu", backend::Precision::Fast, kFp8, DType::F8E4M3},
};

/// Tokens [first, last) of one sequence.
struct Chunk {
  std::size_t sequence;
  std::int64_t first;
  std::int64_t last;
};

class BatchInvariance : public testing::TestWithParam<Setting> {
 protected:
  static constexpr std::int32_t kBlockSize = 16;
  static constexpr std::int64_t kBlocks = 10;
  static constexpr std::size_t kSequences = 4;

  void SetUp() override {
    std::mt19937 random(5);
    for (auto& sequence : tokens_) {
      sequence.resize(150);
      for (std::int32_t& token : sequence) token = static_cast<std::int32_t>(random() % 256);
    }
  }

  void start(int num_threads) {
    logits_.clear();
    testing_support::write_tiny_config(folder_.path(), GetParam().config);
    checkpoint_ = make_dummy_checkpoint(folder_.path(), 7);
    decoder_.reset();
    backend_ =
        backend::make_backend(GetParam().backend, {.precision = GetParam().precision, .num_threads = num_threads});
    decoder_ = load_decoder(*checkpoint_, *backend_);
    decoder_->reserve(512, 512);
    cache_ = backend_->make_kv_cache(
        decoder_->kv_specs(GetParam().precision == backend::Precision::Exact ? DType::F32 : GetParam().cache_dtype),
        kBlocks * static_cast<std::int64_t>(kSequences), kBlockSize);
  }

  /// One step; keeps every token's logits under (sequence, position).
  void step(const std::vector<Chunk>& chunks) {
    std::vector<std::int32_t> tokens, positions, query_start{0}, context_len, block_table, logit_rows;
    std::vector<std::int64_t> slots;
    for (const Chunk& chunk : chunks) {
      const auto block = [&](std::int64_t b) {
        return static_cast<std::int32_t>(b * static_cast<std::int64_t>(kSequences) +
                                         static_cast<std::int64_t>(chunk.sequence));
      };
      for (std::int64_t b = 0; b < kBlocks; ++b) block_table.push_back(block(b));
      for (std::int64_t p = chunk.first; p < chunk.last; ++p) {
        logit_rows.push_back(static_cast<std::int32_t>(tokens.size()));
        tokens.push_back(tokens_[chunk.sequence][static_cast<std::size_t>(p)]);
        positions.push_back(static_cast<std::int32_t>(p));
        slots.push_back(std::int64_t{block(p / kBlockSize)} * kBlockSize + p % kBlockSize);
      }
      query_start.push_back(static_cast<std::int32_t>(tokens.size()));
      context_len.push_back(static_cast<std::int32_t>(chunk.last));
    }
    const backend::ForwardBatch batch{.tokens = tokens,
                                      .positions = positions,
                                      .query_start = query_start,
                                      .context_len = context_len,
                                      .block_table = block_table,
                                      .block_table_stride = kBlocks,
                                      .slot_mapping = slots,
                                      .logit_rows = logit_rows};
    const auto& logits = decoder_->step(batch, *cache_, static_cast<std::int64_t>(logit_rows.size()));
    std::int64_t row = 0;
    for (const Chunk& chunk : chunks) {
      for (std::int64_t p = chunk.first; p < chunk.last; ++p, ++row) {
        const auto values = logits.values.matrix<float>().row_span(row);
        logits_[{chunk.sequence, p}].assign(values.begin(), values.end());
      }
    }
  }

  using Logits = std::map<std::pair<std::size_t, std::int64_t>, std::vector<float>>;

  testing_support::TemporaryFolder folder_;
  std::vector<std::int32_t> tokens_[kSequences];
  std::unique_ptr<formats::Checkpoint> checkpoint_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<backend::KvCache> cache_;
  Logits logits_;
};

TEST_P(BatchInvariance, ASequenceAloneInChunksAndAmongOthersGivesTheSameBits) {
  start(2);
  step({{0, 0, 150}});
  const Logits alone = logits_;
  // A dummy model whose logits said nothing would pass any comparison.
  ASSERT_NE(alone.at({0, 1}), alone.at({0, 2}));
  ASSERT_TRUE(std::isfinite(alone.at({0, 149})[0]));

  start(1);
  step({{1, 0, 70}, {0, 0, 33}, {2, 0, 1}});
  step({{2, 1, 2}, {1, 70, 71}, {0, 33, 34}});
  step({{0, 34, 140}, {3, 0, 150}, {1, 71, 72}});
  for (std::int64_t p = 140; p < 150; ++p) step({{0, p, p + 1}, {1, p - 68, p - 67}, {2, p - 138, p - 137}});
  for (const auto& [key, logits] : alone) ASSERT_EQ(logits_.at(key), logits) << "position " << key.second;
}

TEST_P(BatchInvariance, DecodingOneByOneEqualsOnePrefill) {
  start(1);
  step({{2, 0, 60}});
  const Logits prefill = logits_;
  start(2);
  for (std::int64_t p = 0; p < 60; ++p) step({{2, p, p + 1}});
  EXPECT_EQ(logits_, prefill);
}

INSTANTIATE_TEST_SUITE_P(Backends, BatchInvariance, testing::ValuesIn(kSettings),
                         [](const auto& named) { return named.param.label; });

}  // namespace
}  // namespace nibble::models
