#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/step_graphs.h"
#include "core/error.h"
#include "gpu.h"
#include "models/decoder.h"
#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::backend::cuda {
namespace {

constexpr std::int32_t kBlockSize = 16;
constexpr std::int64_t kBlocksPerSequence = 8;
constexpr std::int64_t kMaxSequences = 20;

TEST(StepGraphs, ThereIsASizeForEveryBatchAndNoneIsMuchLarger) {
  const KvCache cache({}, 1, kBlockSize);
  for (const std::int64_t max_sequences : {1, 2, 3, 4, 7, 8, 20, 256, 1000}) {
    const StepGraphs graphs({.max_sequences = max_sequences}, cache);
    EXPECT_EQ(graphs.batch_sizes().back(), max_sequences);
    for (std::int64_t n = 1; n <= max_sequences; ++n) {
      const std::int64_t size = graphs.padded_size(n);
      EXPECT_GE(size, n);
      EXPECT_LE(size, n <= 4 ? 2 * n : n <= 256 ? n + 7 : n + 15);
    }
    EXPECT_EQ(graphs.padded_size(max_sequences + 1), 0);
  }
}

/// A tiny model on the GPU, with or without recorded steps, and its sequences of tokens.
class Model {
 public:
  Model(const std::string& config, DType cache_dtype, bool is_captured) {
    testing_support::write_tiny_config(folder_.path(), config);
    checkpoint_ = models::make_dummy_checkpoint(folder_.path(), 7);
    backend_ = make_cuda_backend({.num_threads = 1});
    decoder_ = models::load_decoder(*checkpoint_, *backend_);
    decoder_->reserve(256, 64);
    cache_ = backend_->make_kv_cache(decoder_->kv_specs(cache_dtype), kBlocksPerSequence * kMaxSequences, kBlockSize);
    if (is_captured) decoder_->capture(*cache_, kMaxSequences, kBlocksPerSequence);
    std::mt19937 random(5);
    for (auto& sequence : tokens_) {
      for (std::int64_t i = 0; i < kBlocksPerSequence * kBlockSize; ++i) {
        sequence.push_back(static_cast<std::int32_t>(random() % 256));
      }
    }
  }

  /// Tokens [first, last) of each of these sequences in one step; logits of their last tokens, row by row.
  std::vector<float> step(std::span<const std::int32_t> sequences, std::int64_t first, std::int64_t last) {
    std::vector<std::int32_t> tokens, positions, query_start{0}, context_len, table, rows;
    std::vector<std::int64_t> slots;
    const std::int64_t stride = (last + kBlockSize - 1) / kBlockSize;  // it grows, as the engine's does
    for (const std::int32_t s : sequences) {
      const auto block = [&](std::int64_t b) { return static_cast<std::int32_t>(b * kMaxSequences + s); };
      for (std::int64_t b = 0; b < stride; ++b) table.push_back(block(b));
      for (std::int64_t p = first; p < last; ++p) {
        tokens.push_back(tokens_[static_cast<std::size_t>(s)][static_cast<std::size_t>(p)]);
        positions.push_back(static_cast<std::int32_t>(p));
        slots.push_back(std::int64_t{block(p / kBlockSize)} * kBlockSize + p % kBlockSize);
      }
      query_start.push_back(static_cast<std::int32_t>(tokens.size()));
      context_len.push_back(static_cast<std::int32_t>(last));
      rows.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
    }
    const auto num_rows = static_cast<std::int64_t>(rows.size());
    const Activation& logits = decoder_->step({.tokens = tokens,
                                               .positions = positions,
                                               .query_start = query_start,
                                               .context_len = context_len,
                                               .block_table = table,
                                               .block_table_stride = stride,
                                               .slot_mapping = slots,
                                               .logit_rows = rows},
                                              *cache_, num_rows);
    std::vector<float> values(static_cast<std::size_t>(num_rows * 256));
    backend_->read(logits, {values.data(), num_rows, 256, 256});
    return values;
  }

 private:
  testing_support::TemporaryFolder folder_;
  std::unique_ptr<formats::Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<models::Decoder> decoder_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::int32_t> tokens_[kMaxSequences];
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return largest;
}

double range_of(const std::vector<float>& values) {
  const auto [low, high] = std::ranges::minmax(values);
  return static_cast<double>(high) - static_cast<double>(low);
}

struct Setting {
  const char* label;
  const char* config;
  DType cache_dtype;
};

class CudaStep : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU";
  }
};

// head_dim 64, so that the attention kernels of real models run.
constexpr const char* kHeads = R"(, "head_dim": 64)";

TEST_P(CudaStep, ReplayedDecodesGiveWhatTheyGiveUnrecorded) {
  const std::string config = std::string(kHeads) + GetParam().config;
  Model eager(config, GetParam().cache_dtype, false);
  Model recorded(config, GetParam().cache_dtype, true);
  std::vector<std::int32_t> all(kMaxSequences);
  for (std::size_t s = 0; s < all.size(); ++s) all[s] = static_cast<std::int32_t>(s);
  const std::vector<float> prompt = eager.step(std::span(all).first(20), 0, 12);
  EXPECT_EQ(recorded.step(std::span(all).first(20), 0, 12), prompt) << "prefill is never recorded";
  const double range = range_of(prompt);
  ASSERT_GT(range, 0);
  std::int64_t position = 12;
  // Recorded sizes and others, prefill between them, block tables that grow at 16 and 32. Every sequence advances, or
  // the later steps would read positions that nothing wrote.
  for (const std::size_t size : {20, 1, 2, 3, 5, 8, 11, 16, 17, 20, 4, 3, 2, 1}) {
    const auto taking_part = std::span(all).first(size);
    const std::vector<float> expected = eager.step(taking_part, position, position + 1);
    const std::vector<float> actual = recorded.step(taking_part, position, position + 1);
    // Padding may choose other kernels, whose f16 results differ in the last bits.
    EXPECT_LE(largest_difference(actual, expected), 5e-3 * range) << size << " sequences";
    EXPECT_EQ(recorded.step(taking_part, position, position + 1), actual) << "not the same from run to run";
    if (size < all.size()) {  // the others
      eager.step(std::span(all).subspan(size), position, position + 2);
      recorded.step(std::span(all).subspan(size), position, position + 2);
      eager.step(taking_part, position + 1, position + 2);
      recorded.step(taking_part, position + 1, position + 2);
      position += 2;
    } else {
      position += 1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, CudaStep,
    testing::Values(Setting{"F16", "", DType::F16},
                    Setting{"Gptq4",
                            R"(, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32})",
                            DType::F16},
                    Setting{"Fp8", R"(, "quantization_config": {"quant_method": "fp8"})", DType::F8E4M3}),
    [](const auto& named) { return std::string(named.param.label); });

TEST(CudaStep, ABodyRunsOnceAndIsReplayedFromThenOn) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const auto backend = make_cuda_backend({.num_threads = 1});
  const auto cache = backend->make_kv_cache({{.dtype = DType::F16, .num_kv_heads = 1, .head_dim = 64}}, 4, kBlockSize);
  Tensor table = Tensor::empty(DType::F32, {8, 16});
  for (std::int64_t i = 0; i < 8 * 16; ++i) table.span<float>()[static_cast<std::size_t>(i)] = static_cast<float>(i);
  const auto embedding = backend->make_embedding({to_dtype(table, DType::F16)});
  Activation hidden = backend->make_activation(8, 16, backend->hidden_format());
  const auto capture =
      backend->make_step_capture({.max_tokens = 8, .max_sequences = 4, .max_blocks_per_sequence = 2}, *cache);
  int num_calls = 0;
  for (const std::int32_t token : {3, 7, 1}) {
    const std::vector<std::int32_t> tokens{token, 0, token}, positions{0, 0, 0}, query_start{0, 1, 2, 3},
        context_len{1, 1, 1}, blocks{0, 1, 2}, rows{0, 1, 2};
    const std::vector<std::int64_t> slots{0, 16, 32};
    const ForwardBatch batch{.tokens = tokens,
                             .positions = positions,
                             .query_start = query_start,
                             .context_len = context_len,
                             .block_table = blocks,
                             .block_table_stride = 1,
                             .slot_mapping = slots,
                             .logit_rows = rows};
    backend->run_step(batch, *cache, capture.get(), [&] {
      ++num_calls;
      backend->embed(*embedding, batch, hidden);
    });
    std::vector<float> values(4 * 16);
    backend->read(hidden, {values.data(), 4, 16, 16});
    EXPECT_EQ(values[0], static_cast<float>(token * 16));
    EXPECT_EQ(values[16], 0.0F);
    EXPECT_EQ(values[32], static_cast<float>(token * 16));
  }
  EXPECT_EQ(num_calls, 2) << "once as it is and once recorded";
}

}  // namespace
}  // namespace nibble::backend::cuda
