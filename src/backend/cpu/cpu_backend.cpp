#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "backend/cpu/activation_rows.h"
#include "backend/cpu/cpu_kv_cache.h"
#include "backend/cpu/cpu_linear.h"
#include "backend/cpu/kernels.h"
#include "backend/host_ops.h"
#include "backend/host_sampling.h"
#include "core/log.h"

namespace nibble::backend {
namespace cpu {
namespace {

// Query tokens of a sequence that share one pass over the context: with 3 … 8 heads a kv head some tens of rows, enough
// to reuse each key from cache, few enough that both the rows' state and a run of keys stay in L1 and L2.
constexpr std::int64_t kQueryTokens = 16;

/// table [vocab_size, hidden_size] in its own float dtype, borrowed where the caller's borrows.
class CpuEmbedding final : public Embedding {
 public:
  explicit CpuEmbedding(weights::DenseWeights source) : table(std::move(source)) {}
  weights::DenseWeights table;
};

/// Consecutive query tokens of one sequence.
struct QueryBlock {
  std::int64_t sequence;
  std::int64_t first_token;
  std::int64_t num_tokens;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : pack_options_{options.precision, options.fp8_activations}, workspace_(options.num_threads) {
    log::debug("cpu backend: {}, {} threads", simd_name(), workspace_.pool.num_threads());
  }

  std::string_view name() const override { return "cpu"; }
  Memory memory() const override { return host_memory(); }
  ThreadPool& pool() override { return workspace_.pool; }

  std::unique_ptr<Linear> make_linear(std::vector<weights::LinearPart> parts, const LinearSpec& spec) override {
    return make_cpu_linear(std::move(parts), spec, pack_options_, workspace_);
  }
  std::unique_ptr<Embedding> make_embedding(weights::DenseWeights table) override {
    return std::make_unique<CpuEmbedding>(std::move(table));
  }
  std::unique_ptr<Rope> make_rope(const RopeSpec& spec) override { return std::make_unique<HostRope>(spec); }
  Tensor make_vector(TensorView vector) override { return to_dtype(vector, DType::F32); }
  std::unique_ptr<KvCache> make_kv_cache(std::vector<KvSpec> layers, std::int64_t num_blocks,
                                         std::int32_t block_size) override {
    return std::make_unique<CpuKvCache>(std::move(layers), num_blocks, block_size);
  }
  Activation make_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format) override {
    check(format.kind == ActivationKind::F32 || format.kind == ActivationKind::Int16PerGroup || is_fp8(format.kind),
          "the CPU backend computes with f32, FP8 or integer activations");
    return make_host_activation(capacity, width, format);
  }
  ActivationFormat hidden_format() const override { return {}; }

  void prepare_step(const ForwardBatch& batch, const KvCache&) override;

  void embed(const Embedding& table, const ForwardBatch& batch, Activation& hidden) override;
  void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out) override;
  void add(Activation& hidden, const Activation& delta) override;
  void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Rope& rope, KvCache& cache,
                     std::int64_t layer_idx, const ForwardBatch& batch) override;
  void attention(const Activation& qkv, const AttentionSpec& spec, const KvCache& cache, std::int64_t layer_idx,
                 const ForwardBatch& batch, Activation& out) override;
  void silu_mul(const Activation& gate_up, Activation& out) override;
  void gather_rows(const Activation& hidden, const ForwardBatch& batch, std::int64_t first, std::int64_t count,
                   Activation& out) override;
  void sample(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override;

  void read(const Activation& from, Matrix<float> to) override { read_host_activation(from, to); }
  void write(Matrix<const float> from, Activation& to) override { write_host_activation(from, to); }

 private:
  Activation& attention_rows(const Activation& like, std::int64_t width);

  PackOptions pack_options_;
  Workspace workspace_;
  std::vector<QueryBlock> query_blocks_;  // of the prepared step
  Activation attention_rows_;             // f32 [tokens, q_width], before the consumer's format
};

void CpuBackend::prepare_step(const ForwardBatch& batch, const KvCache&) {
  query_blocks_.clear();
  for (std::int64_t s = 0; s < batch.num_sequences(); ++s) {
    const std::int64_t first = batch.query_start[static_cast<std::size_t>(s)];
    const std::int64_t end = batch.query_start[static_cast<std::size_t>(s) + 1];
    for (std::int64_t t = first; t < end; t += kQueryTokens) {
      query_blocks_.push_back({s, t, std::min(kQueryTokens, end - t)});
    }
  }
}

void CpuBackend::embed(const Embedding& table, const ForwardBatch& batch, Activation& hidden) {
  const Tensor& weight = static_cast<const CpuEmbedding&>(table).table.weight;
  hidden.num_tokens = batch.num_tokens();
  for_each_row(workspace_, hidden.num_tokens, [&](std::int64_t t, int) {
    const TensorView row = weight.view().rows(batch.tokens[static_cast<std::size_t>(t)], 1);
    to_float32(row.data(), row.dtype(), hidden.width(), hidden.values.matrix<float>().row(t));
  });
}

void CpuBackend::norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out) {
  const std::int64_t width = hidden.width();
  out.num_tokens = hidden.num_tokens;
  workspace_.reserve_scratch(RowStore::scratch_bytes(width));
  const RowStore store(out);
  for_each_row(workspace_, hidden.num_tokens, [&](std::int64_t t, int thread) {
    std::byte* scratch = workspace_.scratch(thread);
    float* row = hidden.values.matrix<float>().row(t);
    const float squares =
        add_and_square(row, delta != nullptr ? delta->values.matrix<float>().row(t) : nullptr, width, row);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    scale_by_weight(row, scale, weight.span<float>().data(), width, store.begin(t, scratch));
    store.finish(t, scratch);
  });
}

void CpuBackend::add(Activation& hidden, const Activation& delta) {
  for_each_row(workspace_, hidden.num_tokens, [&](std::int64_t t, int) {
    add_row(delta.values.matrix<float>().row(t), hidden.width(), hidden.values.matrix<float>().row(t));
  });
}

void CpuBackend::rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Rope& rope, KvCache& cache,
                               std::int64_t layer_idx, const ForwardBatch& batch) {
  auto& kv = static_cast<CpuKvCache&>(cache);
  const auto& tables = static_cast<const HostRope&>(rope);
  workspace_.reserve_scratch(static_cast<std::size_t>(spec.head_dim) * sizeof(float));
  for_each_row(workspace_, qkv.num_tokens, [&](std::int64_t t, int thread) {
    const auto token = static_cast<std::size_t>(t);
    float* q = qkv.values.matrix<float>().row(t);
    float* k = q + spec.q_width();
    const float* cosines = tables.cos(batch.positions[token]).data();
    const float* sines = tables.sin(batch.positions[token]).data();
    // q and k lie side by side: one loop over the heads of both.
    for (std::int64_t h = 0; h < spec.num_heads + spec.num_kv_heads; ++h) {
      rotate_pairs(q + h * spec.head_dim, cosines, sines, spec.head_dim / 2);
    }
    kv.write(layer_idx, batch.slot_mapping[token], k, k + spec.kv_width(), workspace_.scratch(thread));
  });
}

Activation& CpuBackend::attention_rows(const Activation& like, std::int64_t width) {
  if (attention_rows_.values.is_empty() || attention_rows_.capacity() < like.num_tokens ||
      attention_rows_.width() != width) {
    attention_rows_ = make_host_activation(like.capacity(), width, {});
  }
  attention_rows_.num_tokens = like.num_tokens;
  return attention_rows_;
}

void CpuBackend::attention(const Activation& qkv, const AttentionSpec& spec, const KvCache& cache,
                           std::int64_t layer_idx, const ForwardBatch& batch, Activation& out) {
  const auto& kv = static_cast<const CpuKvCache&>(cache);
  const std::int64_t heads_per_kv = spec.num_heads / spec.num_kv_heads;
  const bool in_place = out.format.kind == ActivationKind::F32 && out.format.input_permutation.empty();
  out.num_tokens = qkv.num_tokens;
  Activation& rows = in_place ? out : attention_rows(qkv, spec.q_width());
  workspace_.reserve_scratch(attention_scratch_bytes(kQueryTokens * heads_per_kv, spec.head_dim));
  const auto num_blocks = static_cast<std::int64_t>(query_blocks_.size());
  // The last blocks of a prompt see the most keys: they go first, so that no thread is left with a long one.
  workspace_.pool.run(num_blocks * spec.num_kv_heads, [&](std::int64_t i, int thread) {
    const QueryBlock& block = query_blocks_[static_cast<std::size_t>(num_blocks - 1 - i / spec.num_kv_heads)];
    const std::int64_t kv_head = i % spec.num_kv_heads;
    const std::int64_t first_column = kv_head * heads_per_kv * spec.head_dim;
    const AttentionTask task{.queries = qkv.values.matrix<float>().row(block.first_token) + first_column,
                             .out = rows.values.matrix<float>().row(block.first_token) + first_column,
                             .query_stride = qkv.width(),
                             .out_stride = rows.width(),
                             .num_tokens = block.num_tokens,
                             .first_position = batch.positions[static_cast<std::size_t>(block.first_token)],
                             .heads_per_kv = heads_per_kv,
                             .sliding_window = spec.sliding_window,
                             .scale = spec.scale,
                             .block_table = batch.block_table.data() + block.sequence * batch.block_table_stride};
    attention_task(task, kv.head(layer_idx, kv_head), workspace_.scratch(thread));
  });
  if (!in_place) convert_activation(rows, out, workspace_);
}

void CpuBackend::silu_mul(const Activation& gate_up, Activation& out) {
  const std::int64_t width = out.width();
  out.num_tokens = gate_up.num_tokens;
  workspace_.reserve_scratch(RowStore::scratch_bytes(width));
  const RowStore store(out);
  for_each_row(workspace_, out.num_tokens, [&](std::int64_t t, int thread) {
    std::byte* scratch = workspace_.scratch(thread);
    const float* gate = gate_up.values.matrix<float>().row(t);
    silu_mul_row(gate, gate + width, width, store.begin(t, scratch));
    store.finish(t, scratch);
  });
}

void CpuBackend::gather_rows(const Activation& hidden, const ForwardBatch& batch, std::int64_t first,
                             std::int64_t count, Activation& out) {
  const auto rows = batch.logit_rows.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  out.num_tokens = count;
  for (std::int64_t r = 0; r < out.num_tokens; ++r) {
    std::ranges::copy(hidden.values.matrix<float>().row_span(rows[static_cast<std::size_t>(r)]),
                      out.values.matrix<float>().row(r));
  }
}

void CpuBackend::sample(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  workspace_.pool.run(static_cast<std::int64_t>(rows.size()), [&](std::int64_t r, int) {
    const auto row = static_cast<std::size_t>(r);
    out[row] = sample_row(logits.values.matrix<float>().row_span(r), rows[row]);
  });
}

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

}  // namespace nibble::backend
