#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend_cases.h"

namespace nibble::backend::test {
namespace {

/// One sequence's share of a step: its tokens [first, last) run now, earlier ones are in the cache.
struct Chunk {
  std::size_t sequence;
  std::int64_t first;
  std::int64_t last;
};

/// A ForwardBatch with its storage. Blocks are given to sequences interleaved, so that no table is contiguous.
class Step {
 public:
  static constexpr std::int32_t kBlockSize = 16;
  static constexpr std::int64_t kBlocksPerSequence = 24;

  Step(const std::vector<Chunk>& chunks, std::int64_t num_sequences) {
    query_start_.push_back(0);
    for (const Chunk& chunk : chunks) {
      for (std::int64_t b = 0; b < kBlocksPerSequence; ++b)
        block_table_.push_back(block(chunk.sequence, b, num_sequences));
      for (std::int64_t p = chunk.first; p < chunk.last; ++p) {
        tokens_.push_back(0);
        positions_.push_back(static_cast<std::int32_t>(p));
        slot_mapping_.push_back(block(chunk.sequence, p / kBlockSize, num_sequences) * kBlockSize + p % kBlockSize);
      }
      query_start_.push_back(static_cast<std::int32_t>(tokens_.size()));
      context_len_.push_back(static_cast<std::int32_t>(chunk.last));
    }
  }

  ForwardBatch batch() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .query_start = query_start_,
            .context_len = context_len_,
            .block_table = block_table_,
            .block_table_stride = kBlocksPerSequence,
            .slot_mapping = slot_mapping_,
            .logit_rows = {}};
  }

 private:
  static std::int32_t block(std::size_t sequence, std::int64_t b, std::int64_t num_sequences) {
    return static_cast<std::int32_t>((kBlocksPerSequence - 1 - b) * num_sequences +
                                     static_cast<std::int64_t>(sequence));
  }
  std::vector<std::int32_t> tokens_, positions_, query_start_, context_len_, block_table_;
  std::vector<std::int64_t> slot_mapping_;
};

struct AttentionCase {
  std::string label;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  DType dtype = DType::F32;
  std::int32_t sliding_window = 0;
  float k_scale = 1;
  float v_scale = 1;
};

std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
  return out << c.label;
}

const std::vector<AttentionCase> kAttentionCases{
    {"Plain", 2, 2, 64},
    {"GroupsOf3", 9, 3, 64, DType::F16},
    {"GroupsOf8", 8, 1, 128, DType::F16},
    {"BF16", 4, 2, 32, DType::BF16},
    {"OddHeadDim", 3, 1, 20, DType::F16},
    {"HeadDim80", 2, 1, 80, DType::F32},
    {"Window", 4, 2, 32, DType::F16, 50},
    {"NarrowWindow", 2, 1, 16, DType::F32, 1},
    {"Fp8", 9, 3, 64, DType::F8E4M3},
    {"Fp8Scaled", 4, 1, 36, DType::F8E4M3, 70, 0.011f, 0.0083f},
};

using Case = std::tuple<BackendCase, AttentionCase>;

class AttentionOf : public testing::TestWithParam<Case> {
 protected:
  static constexpr std::int64_t kLength = 300;
  static constexpr std::int64_t kSequences = 3;

  const AttentionCase& shape() const { return std::get<1>(GetParam()); }
  std::int64_t q_width() const { return std::int64_t{shape().num_heads} * shape().head_dim; }
  std::int64_t kv_width() const { return std::int64_t{shape().num_kv_heads} * shape().head_dim; }
  std::int64_t width() const { return q_width() + 2 * kv_width(); }
  AttentionSpec spec() const {
    return {.num_heads = shape().num_heads,
            .num_kv_heads = shape().num_kv_heads,
            .head_dim = shape().head_dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape().head_dim)),
            .sliding_window = shape().sliding_window};
  }

  void SetUp() override {
    for (std::uint32_t s = 0; s < kSequences; ++s) qkv_.push_back(random_values(kLength * width(), 30 + s));
  }

  /// Frequencies of zero make rope the identity, so that the expected values need none.
  void start(int num_threads = 2) {
    backend_ = make(std::get<0>(GetParam()), num_threads);
    rope_ = backend_->make_rope({.inv_freq = std::vector<float>(static_cast<std::size_t>(shape().head_dim / 2), 0.0f),
                                 .attention_factor = 1,
                                 .max_positions = kLength});
    cache_ = backend_->make_kv_cache({{.dtype = shape().dtype,
                                       .num_kv_heads = shape().num_kv_heads,
                                       .head_dim = shape().head_dim,
                                       .sliding_window = shape().sliding_window,
                                       .k_scale = shape().k_scale,
                                       .v_scale = shape().v_scale}},
                                     Step::kBlocksPerSequence * kSequences, Step::kBlockSize);
  }

  /// Runs one step; returns the output rows [tokens, q_width].
  std::vector<float> step(const std::vector<Chunk>& chunks) {
    const Step storage(chunks, kSequences);
    const ForwardBatch batch = storage.batch();
    std::vector<float> rows;
    for (const Chunk& chunk : chunks) {
      const auto begin = qkv_[chunk.sequence].begin();
      rows.insert(rows.end(), begin + chunk.first * width(), begin + chunk.last * width());
    }
    Activation qkv = make_hidden(*backend_, batch.num_tokens(), width(), rows);
    Activation out = backend_->make_activation(batch.num_tokens(), q_width(), {});
    backend_->run_step(batch, *cache_, nullptr, [&] {
      backend_->rope_kv_write(qkv, spec(), *rope_, *cache_, 0, batch);
      backend_->attention(qkv, spec(), *cache_, 0, batch, out);
    });
    return read_f32(*backend_, out);
  }

  /// What the cache gives back for a key or value.
  float stored(float value, float scale) const {
    switch (shape().dtype) {
      case DType::F8E4M3: return to_float(to_fp8_e4m3(value / scale)) * scale;
      case DType::F16: return to_float(to_half(value));
      case DType::BF16: return to_float(to_bfloat16(value));
      default: return value;
    }
  }

  /// Attention of one query head in f64 over what the cache holds.
  std::vector<double> expected(std::size_t sequence, std::int64_t position, std::int64_t head) const {
    const float* base = qkv_[sequence].data();
    const std::int64_t kv_head = head / (shape().num_heads / shape().num_kv_heads);
    const std::int64_t first =
        shape().sliding_window > 0 ? std::max<std::int64_t>(0, position + 1 - shape().sliding_window) : 0;
    std::vector<double> out(static_cast<std::size_t>(shape().head_dim), 0.0);
    double total = 0;
    for (std::int64_t p = first; p <= position; ++p) {
      const float* key = base + p * width() + q_width() + kv_head * shape().head_dim;
      double score = 0;
      for (std::int64_t d = 0; d < shape().head_dim; ++d) {
        score += static_cast<double>(base[position * width() + head * shape().head_dim + d]) *
                 stored(key[d], shape().k_scale);
      }
      const double weight = std::exp(score * spec().scale);
      total += weight;
      for (std::int64_t d = 0; d < shape().head_dim; ++d)
        out[static_cast<std::size_t>(d)] += weight * stored(key[kv_width() + d], shape().v_scale);
    }
    for (double& value : out) value /= total;
    return out;
  }

  std::vector<std::vector<float>> qkv_;  // per sequence [kLength, width]
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Rope> rope_;
  std::unique_ptr<KvCache> cache_;
};

std::string case_name(const testing::TestParamInfo<Case>& named) {
  return testing::PrintToString(std::get<0>(named.param)) + "_" + std::get<1>(named.param).label;
}

TEST_P(AttentionOf, EqualsFloat64InAMixedBatch) {
  start();
  step({{0, 0, 200}, {1, 0, 37}});
  const std::vector<Chunk> mixed{{0, 200, 201}, {2, 0, 140}, {1, 37, 60}};
  const std::vector<float> out = step(mixed);
  std::int64_t row = 0;
  for (const Chunk& chunk : mixed) {
    for (std::int64_t p = chunk.first; p < chunk.last; ++p, ++row) {
      for (std::int64_t h = 0; h < shape().num_heads; ++h) {
        const std::vector<double> want = expected(chunk.sequence, p, h);
        for (std::size_t d = 0; d < want.size(); ++d) {
          // A score errs by head_dim * 2^-24 of sum |q k| * scale (< 40 here), relative in the probability; exp adds 2
          // ulp, the sum over 300 keys 300 * 2^-24. Values are below 5: 64 * 40 * 6e-8 * 5 would be the worst case,
          // 8e-4; signs average out and 2e-5 holds with room.
          ASSERT_NEAR(out[static_cast<std::size_t>(row * q_width() + h * shape().head_dim) + d], want[d], 2e-5)
              << "sequence " << chunk.sequence << " position " << p << " head " << h << " dim " << d;
        }
      }
    }
  }
}

TEST_P(AttentionOf, IsTheSameAloneInABatchAndInChunks) {
  start();
  const std::vector<float> alone = step({{0, 0, kLength}});
  const auto row_of = [&](const std::vector<float>& rows, std::int64_t row) {
    return std::vector<float>(rows.begin() + row * q_width(), rows.begin() + (row + 1) * q_width());
  };

  start(1);
  std::vector<float> chunked = step({{0, 0, 5}});
  for (const auto& [first, last] : {std::pair{5, 21}, {21, 150}, {150, 299}}) {
    const std::vector<float> more = step({{1, first - 5, last - 5}, {0, first, last}});
    chunked.insert(chunked.end(), more.begin() + (last - first) * q_width(), more.end());
  }
  const std::vector<float> decoded = step({{0, 299, 300}, {1, 294, 295}});
  chunked.insert(chunked.end(), decoded.begin(), decoded.begin() + q_width());
  for (std::int64_t p = 0; p < kLength; ++p) ASSERT_EQ(row_of(chunked, p), row_of(alone, p)) << "position " << p;
}

TEST_P(AttentionOf, ASequenceOfNaNLeavesItsNeighboursAlone) {
  start();
  const std::vector<float> clean = step({{0, 0, 40}, {1, 0, 40}});
  std::ranges::fill(qkv_[1], std::nanf(""));
  start();
  const std::vector<float> beside = step({{0, 0, 40}, {1, 0, 40}});
  EXPECT_TRUE(std::equal(beside.begin(), beside.begin() + 40 * q_width(), clean.begin()));
  EXPECT_TRUE(std::isnan(beside.back()));
}

TEST_P(AttentionOf, ANaNInTheCacheStaysVisible) {
  if (shape().dtype == DType::F16) return;  // Highway's f16 on machines without AVX2 turns NaN into a number
  start();
  const std::int64_t last = shape().sliding_window > 0 ? std::min(30, shape().sliding_window - 1) : 30;
  std::fill_n(qkv_[0].begin() + q_width() + kv_width(), kv_width(), std::nanf(""));  // the first token's values
  step({{0, 0, std::max<std::int64_t>(1, last)}});
  if (last == 0) return;
  EXPECT_TRUE(std::isnan(step({{0, last, last + 1}}).back()));
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionOf,
                         testing::Combine(testing::ValuesIn(kBackendCases), testing::ValuesIn(kAttentionCases)),
                         case_name);

}  // namespace
}  // namespace nibble::backend::test
