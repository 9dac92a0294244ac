#include "backend/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention_plan.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/reference/reference_backend.h"
#include "core/error.h"
#include "gpu.h"

namespace nibble::backend::cuda {
namespace {

constexpr std::int32_t kBlockSize = 16;

/// Standard normal values that f16 holds exactly; drawn from a table, since histories are long.
std::vector<float> random_values(std::size_t count, std::uint32_t seed) {
  static const std::vector<float> table = [] {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(1 << 16);
    for (float& value : values) value = to_float(to_half(normal(generator)));
    return values;
  }();
  std::minstd_rand random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = table[random() >> 8 & 0xFFFF];
  return values;
}

struct Sequence {
  std::int32_t cached = 0;   // tokens before the step
  std::int32_t num_new = 0;  // of the step; 0: pads the batch with one token
};

struct Case {
  std::string name;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::vector<Sequence> sequences;
  DType cache = DType::F16;
  std::int32_t window = 0;
  float k_scale = 1;
  float v_scale = 1;

  AttentionSpec spec() const {
    return {.num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .head_dim = head_dim,
            .scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
            .sliding_window = window};
  }
  KvSpec kv() const {
    return {.dtype = cache,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .head_dim = head_dim,
            .sliding_window = window,
            .k_scale = k_scale,
            .v_scale = v_scale};
  }
};

/// A step of a case, and the one before it that fills the cache. Blocks lie in random order.
class Batch {
 public:
  enum class Part { History, Step, StepWithoutPadding };

  Batch(const Case& test, Part part) {
    const std::vector<std::int32_t> order = block_order(test);
    std::size_t next_block = 0;
    for (const Sequence& sequence : test.sequences) {
      const std::int32_t end = sequence.cached + sequence.num_new;
      const auto num_blocks = static_cast<std::size_t>((end + kBlockSize - 1) / kBlockSize);
      const std::vector<std::int32_t> blocks(order.begin() + static_cast<std::ptrdiff_t>(next_block),
                                             order.begin() + static_cast<std::ptrdiff_t>(next_block + num_blocks));
      next_block += num_blocks;
      if (sequence.num_new == 0) {
        if (part == Part::Step) add(blocks, 0, 0, 0);
        continue;
      }
      if (part != Part::History) {
        add(blocks, sequence.cached, end, end);
      } else if (sequence.cached > 0) {
        add(blocks, 0, sequence.cached, sequence.cached);
      }
    }
    stride_ = 0;
    for (const auto& blocks : blocks_) stride_ = std::max(stride_, static_cast<std::int64_t>(blocks.size()));
    for (const auto& blocks : blocks_) {
      table_.insert(table_.end(), blocks.begin(), blocks.end());
      table_.resize(table_.size() + static_cast<std::size_t>(stride_) - blocks.size(), 0);
    }
  }

  static std::int64_t num_blocks(const Case& test) {
    std::int64_t count = 0;
    for (const Sequence& sequence : test.sequences) {
      count += (sequence.cached + sequence.num_new + kBlockSize - 1) / kBlockSize;
    }
    return count;
  }

  ForwardBatch view() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .query_start = query_start_,
            .context_len = context_len_,
            .block_table = table_,
            .block_table_stride = stride_,
            .slot_mapping = slots_,
            .logit_rows = {}};
  }
  bool is_padding(std::size_t token) const { return slots_[token] < 0; }

 private:
  static std::vector<std::int32_t> block_order(const Case& test) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(num_blocks(test)));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, std::mt19937(17));
    return order;
  }

  void add(const std::vector<std::int32_t>& blocks, std::int32_t begin, std::int32_t end, std::int32_t context_len) {
    for (std::int32_t p = begin; p < end; ++p) {
      tokens_.push_back(0);
      positions_.push_back(p);
      slots_.push_back(std::int64_t{blocks[static_cast<std::size_t>(p / kBlockSize)]} * kBlockSize + p % kBlockSize);
    }
    if (context_len == 0) {
      tokens_.push_back(0);
      positions_.push_back(0);
      slots_.push_back(-1);
    }
    query_start_.push_back(static_cast<std::int32_t>(tokens_.size()));
    context_len_.push_back(context_len);
    blocks_.push_back(blocks);
  }

  std::vector<std::int32_t> tokens_, positions_, query_start_{0}, context_len_, table_;
  std::vector<std::int64_t> slots_;
  std::vector<std::vector<std::int32_t>> blocks_;
  std::int64_t stride_ = 0;
};

/// Rotates, writes and attends; the attention's result, a row a token.
Tensor run_step(Backend& backend, const Case& test, const Rope& rope, KvCache& cache, const Batch& batch,
                std::uint32_t seed, bool wants_result) {
  const AttentionSpec spec = test.spec();
  const ForwardBatch view = batch.view();
  const std::int64_t width = spec.q_width() + 2 * spec.kv_width();
  Tensor rows = Tensor::empty(DType::F32, {view.num_tokens(), width});
  // Padding rows take no values from the sequence, so that both batches have the same rows.
  std::int64_t num_rows = 0;
  for (std::size_t t = 0; t < view.tokens.size(); ++t) num_rows += batch.is_padding(t) ? 0 : 1;
  const std::vector<float> values = random_values(static_cast<std::size_t>(num_rows * width), seed);
  std::size_t taken = 0;
  for (std::int64_t t = 0; t < view.num_tokens(); ++t) {
    const auto row = rows.matrix<float>().row_span(t);
    if (batch.is_padding(static_cast<std::size_t>(t))) {
      std::ranges::fill(row, 3.0F);
      continue;
    }
    std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(taken), row.size(), row.begin());
    taken += row.size();
  }
  Activation qkv = backend.make_activation(view.num_tokens(), width, backend.hidden_format());
  Activation out = backend.make_activation(view.num_tokens(), spec.q_width(), backend.hidden_format());
  Tensor result = Tensor::empty(DType::F32, {view.num_tokens(), spec.q_width()});
  std::ranges::fill(result.span<float>(), 777.0F);
  backend.write(result.matrix<float>(), out);  // so that a row that nobody writes is seen
  backend.prepare_step(view, cache);
  backend.write(rows.matrix<float>(), qkv);
  backend.rope_kv_write(qkv, spec, rope, cache, 0, view);
  if (!wants_result) return {};
  backend.attention(qkv, spec, cache, 0, view, out);
  backend.read(out, result.matrix<float>());
  return result;
}

Tensor run_case(Backend& backend, const Case& test, Batch::Part part) {
  std::vector<float> inv_freq(static_cast<std::size_t>(test.head_dim / 2));
  for (std::size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] = std::pow(0.8F, static_cast<float>(i));
  const auto rope = backend.make_rope({.inv_freq = inv_freq, .attention_factor = 1, .max_positions = 8192});
  const auto cache = backend.make_kv_cache({test.kv()}, Batch::num_blocks(test), kBlockSize);
  const Batch history(test, Batch::Part::History);
  if (!history.view().tokens.empty()) run_step(backend, test, *rope, *cache, history, 5, false);
  return run_step(backend, test, *rope, *cache, Batch(test, part), 6, true);
}

std::vector<Case> cases() {
  const std::vector<Sequence> decode = {{0, 1}, {14, 1}, {15, 1}, {16, 1}, {499, 1}};
  const std::vector<Sequence> prefill = {{0, 300}, {0, 1}, {0, 129}, {0, 16}};
  const std::vector<Sequence> chunked = {{700, 200}, {33, 5}, {1500, 64}};
  const std::vector<Sequence> mixed = {{0, 250}, {800, 1}, {260, 140}, {17, 1}, {1300, 1}, {400, 3}};
  const std::vector<Sequence> padded = {{499, 1}, {77, 1}, {0, 0}, {0, 0}, {1200, 1}, {0, 0}};
  std::vector<Case> all;
  for (const auto& [heads, kv_heads] : {std::pair{4, 4}, {9, 3}, {8, 2}, {14, 2}, {8, 1}, {24, 1}}) {
    for (const std::int32_t head_dim : {64, 128}) {
      all.push_back({"decode", heads, kv_heads, head_dim, decode});
      all.push_back({"padded", heads, kv_heads, head_dim, padded});
    }
  }
  all.push_back({"one long", 8, 2, 128, {{5000, 1}}});
  all.push_back({"decode", 4, 2, 256, decode});
  for (const std::int32_t head_dim : {64, 128, 256}) {
    for (const auto& [name, sequences] : {std::pair{"prefill", prefill}, {"chunked", chunked}, {"mixed", mixed}}) {
      all.push_back({name, 6, 2, head_dim, sequences});
      all.push_back({std::string(name) + " window", 6, 2, head_dim, sequences, DType::F16, 150});
      all.push_back({std::string(name) + " fp8", 6, 2, head_dim, sequences, DType::F8E4M3, 0, 0.02F, 0.03F});
    }
    all.push_back({"decode window", 6, 2, head_dim, decode, DType::F16, 150});
    all.push_back({"decode fp8", 6, 2, head_dim, decode, DType::F8E4M3, 0, 0.02F, 0.03F});
    all.push_back({"decode fp8 window", 6, 2, head_dim, decode, DType::F8E4M3, 700, 0.02F, 0.03F});
  }
  all.push_back({"prefill", 7, 1, 128, prefill});
  all.push_back({"many", 8, 2, 128, std::vector<Sequence>(150, {200, 1})});
  all.push_back({"plain padded", 4, 2, 80, padded});
  return all;
}

TEST(CudaAttention, AgreesWithTheReferenceForEveryMixOfLengthsAndHeads) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  const auto cuda = make_cuda_backend({.num_threads = 2});
  const auto reference = make_reference_backend({.precision = Precision::Exact});
  for (const Case& test : cases()) {
    SCOPED_TRACE(testing::Message() << test.name << ": " << test.num_heads << " heads, " << test.num_kv_heads
                                    << " KV heads of " << test.head_dim);
    const Tensor expected = run_case(*reference, test, Batch::Part::StepWithoutPadding);
    const Tensor actual = run_case(*cuda, test, Batch::Part::Step);
    const Tensor again = run_case(*cuda, test, Batch::Part::Step);
    EXPECT_TRUE(std::ranges::equal(actual.span<float>(), again.span<float>())) << "differs from run to run";
    const Batch batch(test, Batch::Part::Step);
    // q, the softmax's weights and parts of a result are rounded to f16, each by at most 2^-11 of itself. In an fp8
    // cache a last bit of f32 may decide which way a key is rounded.
    const double tolerance = test.cache == DType::F8E4M3 ? 2e-2 : 2.5e-3;
    std::int64_t row = 0;
    int num_wrong = 0;
    for (std::int64_t t = 0; t < actual.shape()[0] && num_wrong < 5; ++t) {
      const auto values = actual.matrix<float>().row_span(t);
      if (batch.is_padding(static_cast<std::size_t>(t))) {
        EXPECT_TRUE(std::ranges::all_of(values, [](float value) { return value == 0; })) << "padding " << t;
        continue;
      }
      const auto wanted = expected.matrix<float>().row_span(row++);
      float largest = 0;
      for (const float value : wanted) largest = std::max(largest, std::abs(value));
      for (std::size_t i = 0; i < wanted.size() && num_wrong < 5; ++i) {
        if (std::abs(values[i] - wanted[i]) <= tolerance * largest) continue;
        ADD_FAILURE() << "token " << t << ", element " << i << ": " << values[i] << ", not " << wanted[i]
                      << "; the row's largest is " << largest;
        ++num_wrong;
      }
    }
  }
}

/// Decode of single tokens over a cache of random values, without a backend around it.
class DecodeStep {
 public:
  static constexpr std::int64_t kBlocksPerSequence = 40;

  DecodeStep(const Case& test, std::int64_t num_sequences)
      : spec_(test.spec()),
        stream_(make_stream()),
        cache_({test.kv()}, num_sequences * kBlocksPerSequence, kBlockSize),
        num_sequences_(num_sequences) {
    const std::int64_t kv_elements = num_sequences * kBlocksPerSequence * kBlockSize * spec_.kv_width();
    fill(cache_.keys(0), kv_elements, 1);
    fill(cache_.values(0), kv_elements, 2);
    qkv_ = activation(spec_.q_width() + 2 * spec_.kv_width());
    fill(qkv_.values.mutable_view().data(), qkv_.values.shape()[0] * qkv_.width(), 3);
    out_ = activation(spec_.q_width());
    std::vector<std::int32_t> table(static_cast<std::size_t>(num_sequences * kBlocksPerSequence));
    std::iota(table.begin(), table.end(), 0);
    table_ = table;
    device_table_ = device_buffer(table.size() * sizeof(std::int32_t));
    check(cudaMemcpy(device_table_.data(), table.data(), table.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice));
  }

  void plan(std::vector<std::int32_t> context_len) {
    context_len_ = std::move(context_len);
    const auto count = static_cast<std::size_t>(num_sequences_);
    tokens_.assign(count, 0);
    query_start_.resize(count + 1);
    std::iota(query_start_.begin(), query_start_.end(), 0);
    plan_.plan({.tokens = tokens_,
                .positions = tokens_,
                .query_start = query_start_,
                .context_len = context_len_,
                .block_table = table_,
                .block_table_stride = kBlocksPerSequence,
                .slot_mapping = {},
                .logit_rows = {}},
               cache_, stream_.get());
  }
  void run() {
    plan_.run(qkv_, spec_, cache_, 0, static_cast<const std::int32_t*>(device_table_.data()), out_, stream_.get());
  }
  std::vector<float> result() { return to_floats(to_host(out_.values.view(), stream_.get())); }
  cudaStream_t stream() const { return stream_.get(); }
  std::uint64_t generation() const { return plan_.generation(); }

 private:
  Activation activation(std::int64_t width) const {
    Activation made;
    made.format.kind = ActivationKind::F16;
    made.values = Tensor(device_buffer(static_cast<std::size_t>(num_sequences_ * width) * 2), DType::F16,
                         {num_sequences_, width});
    made.num_tokens = num_sequences_;
    return made;
  }
  void fill(void* to, std::int64_t count, std::uint32_t seed) {
    const std::vector<float> values = random_values(static_cast<std::size_t>(count), seed);
    const Tensor f16 = to_dtype(TensorView(values.data(), DType::F32, {count}), DType::F16);
    check(cudaMemcpy(to, f16.view().data(), f16.view().size_bytes(), cudaMemcpyHostToDevice));
  }
  static std::vector<float> to_floats(const Tensor& tensor) {
    const Tensor f32 = to_dtype(tensor.view(), DType::F32);
    return {f32.span<float>().begin(), f32.span<float>().end()};
  }

  AttentionSpec spec_;
  Stream stream_;
  CudaKvCache cache_;
  std::int64_t num_sequences_;
  AttentionPlan plan_;
  Activation qkv_, out_;
  Buffer device_table_;
  std::vector<std::int32_t> tokens_, query_start_, context_len_, table_;
};

TEST(CudaAttention, ACapturedDecodeStepReplaysWithOtherLengths) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::int64_t num_sequences : {1, 8, 64}) {
    SCOPED_TRACE(num_sequences);
    DecodeStep step({"", 32, 8, 128, {}}, num_sequences);
    std::vector<std::int32_t> first(static_cast<std::size_t>(num_sequences), 1), second = first;
    for (std::size_t s = 0; s < first.size(); ++s) {
      second[s] = s % 5 == 4 ? 0 : static_cast<std::int32_t>(1 + (s * 97 + 630) % 640);
    }
    step.plan(first);
    const std::uint64_t generation = step.generation();
    check(cudaStreamBeginCapture(step.stream(), cudaStreamCaptureModeThreadLocal));
    step.run();
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(step.stream(), &graph));
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, graph, 0));
    for (const auto& lengths : {second, first, second}) {
      step.plan(lengths);
      step.run();
      const std::vector<float> expected = step.result();
      step.plan(lengths == first ? second : first);
      step.run();
      step.plan(lengths);
      check(cudaGraphLaunch(executable, step.stream()));
      EXPECT_EQ(step.result(), expected);
      EXPECT_TRUE(std::ranges::any_of(expected, [](float value) { return value != 0; }));
    }
    EXPECT_EQ(step.generation(), generation);
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
  }
}

}  // namespace
}  // namespace nibble::backend::cuda
