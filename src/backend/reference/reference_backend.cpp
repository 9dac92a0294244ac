#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "backend/host_ops.h"
#include "backend/host_sampling.h"
#include "backend/reference/reference_linear.h"

namespace nibble::backend {
namespace {

/// table [vocab_size, hidden_size] in its own float dtype, borrowed where the caller's borrows.
class ReferenceEmbedding final : public Embedding {
 public:
  explicit ReferenceEmbedding(weights::DenseWeights source) : table(std::move(source)) {}
  weights::DenseWeights table;
};

/// Per layer, keys then values: [num_blocks * block_size, num_kv_heads * head_dim], slot by slot.
class ReferenceKvCache final : public KvCache {
 public:
  ReferenceKvCache(std::vector<KvSpec> specs, std::int64_t num_blocks, std::int32_t block_size)
      : KvCache(std::move(specs), num_blocks, block_size) {
    for (std::int64_t l = 0; l < num_layers(); ++l) {
      const Shape shape{num_blocks * block_size, std::int64_t{layer(l).num_kv_heads} * layer(l).head_dim};
      keys.push_back(Tensor::empty(layer(l).dtype, shape));
      values.push_back(Tensor::empty(layer(l).dtype, shape));
    }
  }
  std::vector<Tensor> keys;
  std::vector<Tensor> values;
};

/// Stored = cast(value / scale): the scale is that of 8-bit dtypes, else 1.
float stored_scale(const KvSpec& spec, float scale) {
  return spec.dtype == DType::F8E4M3 ? scale : 1.0f;
}

void store(const float* values, std::int64_t width, float scale, MutableTensorView slot) {
  std::vector<float> scaled(values, values + width);
  for (float& value : scaled) value /= scale;
  convert({scaled.data(), DType::F32, {1, width}}, slot);
}

void rotate(float* head, std::int64_t head_dim, std::span<const float> cos, std::span<const float> sin) {
  const auto half = static_cast<std::size_t>(head_dim / 2);
  for (std::size_t j = 0; j < half; ++j) {
    const float a = head[j];
    const float b = head[j + half];
    head[j] = a * cos[j] - b * sin[j];
    head[j + half] = b * cos[j] + a * sin[j];
  }
}

/// Softmax attention of one query head over `scores.size()` cached positions from `first`.
class HeadAttention {
 public:
  HeadAttention(const ReferenceKvCache& cache, std::int64_t layer_idx, std::span<const std::int32_t> blocks,
                std::int64_t kv_head, const AttentionSpec& spec)
      : cache_(cache), layer_idx_(layer_idx), blocks_(blocks), kv_head_(kv_head), spec_(spec) {
    vector_.resize(static_cast<std::size_t>(spec.head_dim));
  }

  void operator()(const float* query, std::int64_t first, std::int64_t end, float* out) {
    scores_.resize(static_cast<std::size_t>(end - first));
    float max_score = -INFINITY;
    for (std::int64_t p = first; p < end; ++p) {
      load(cache_.keys, p, stored_scale(cache_.layer(layer_idx_), cache_.layer(layer_idx_).k_scale));
      float score = 0;
      for (std::size_t d = 0; d < vector_.size(); ++d) score += query[d] * vector_[d];
      scores_[static_cast<std::size_t>(p - first)] = score * spec_.scale;
      max_score = std::max(max_score, score * spec_.scale);
    }
    float sum = 0;
    for (float& score : scores_) sum += score = std::exp(score - max_score);
    std::fill_n(out, spec_.head_dim, 0.0f);
    for (std::int64_t p = first; p < end; ++p) {
      load(cache_.values, p, stored_scale(cache_.layer(layer_idx_), cache_.layer(layer_idx_).v_scale));
      const float weight = scores_[static_cast<std::size_t>(p - first)] / sum;
      for (std::size_t d = 0; d < vector_.size(); ++d) out[d] += weight * vector_[d];
    }
  }

 private:
  void load(const std::vector<Tensor>& layers, std::int64_t position, float scale) {
    const std::int64_t slot =
        std::int64_t{blocks_[static_cast<std::size_t>(position / cache_.block_size())]} * cache_.block_size() +
        position % cache_.block_size();
    const Tensor& tensor = layers[static_cast<std::size_t>(layer_idx_)];
    const auto* row = static_cast<const std::byte*>(tensor.view().rows(slot, 1).data());
    const auto offset = static_cast<std::size_t>(kv_head_ * spec_.head_dim) * size_bytes(tensor.dtype());
    to_float32(row + offset, tensor.dtype(), spec_.head_dim, vector_.data());
    for (float& value : vector_) value *= scale;
  }

  const ReferenceKvCache& cache_;
  std::int64_t layer_idx_;
  std::span<const std::int32_t> blocks_;
  std::int64_t kv_head_;
  const AttentionSpec& spec_;
  std::vector<float> vector_;
  std::vector<float> scores_;
};

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(const BackendOptions& options) : options_(options), pool_(options.num_threads) {}

  std::string_view name() const override { return "reference"; }
  Memory memory() const override { return host_memory(); }
  ThreadPool& pool() override { return pool_; }

  std::unique_ptr<Linear> make_linear(std::vector<weights::LinearPart> parts, const LinearSpec&) override {
    return make_reference_linear(std::move(parts), options_, pool_);
  }
  std::unique_ptr<Embedding> make_embedding(weights::DenseWeights table) override {
    return std::make_unique<ReferenceEmbedding>(std::move(table));
  }
  std::unique_ptr<Rope> make_rope(const RopeSpec& spec) override { return std::make_unique<HostRope>(spec); }
  Tensor make_vector(TensorView vector) override { return to_dtype(vector, DType::F32); }
  std::unique_ptr<KvCache> make_kv_cache(std::vector<KvSpec> layers, std::int64_t num_blocks,
                                         std::int32_t block_size) override {
    return std::make_unique<ReferenceKvCache>(std::move(layers), num_blocks, block_size);
  }
  Activation make_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format) override {
    check(format.kind == ActivationKind::F32, "the reference backend computes in f32");
    return make_host_activation(capacity, width, format);
  }
  ActivationFormat hidden_format() const override { return {}; }

  void prepare_step(const ForwardBatch&, const KvCache&) override {}

  void embed(const Embedding& table, const ForwardBatch& batch, Activation& hidden) override {
    const Tensor& weight = static_cast<const ReferenceEmbedding&>(table).table.weight;
    hidden.num_tokens = batch.num_tokens();
    for (std::int64_t t = 0; t < hidden.num_tokens; ++t) {
      const TensorView row = weight.view().rows(token_of(batch, static_cast<std::size_t>(t)), 1);
      to_float32(row.data(), row.dtype(), hidden.width(), hidden.values.matrix<float>().row(t));
    }
  }

  void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out) override {
    if (delta != nullptr) add(hidden, *delta);
    out.num_tokens = hidden.num_tokens;
    const auto scale = weight.span<float>();
    for (std::int64_t t = 0; t < hidden.num_tokens; ++t) {
      const auto x = hidden.values.matrix<float>().row_span(t);
      const auto y = out.values.matrix<float>().row_span(t);
      double squares = 0;
      for (const float value : x) squares += static_cast<double>(value) * value;
      const auto inverse = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps));
      for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] * inverse * scale[i];
    }
  }

  void add(Activation& hidden, const Activation& delta) override {
    for (std::int64_t t = 0; t < hidden.num_tokens; ++t) {
      const auto x = hidden.values.matrix<float>().row_span(t);
      const auto d = delta.values.matrix<float>().row_span(t);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += d[i];
    }
  }

  void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Rope& rope, KvCache& cache,
                     std::int64_t layer_idx, const ForwardBatch& batch) override {
    auto& kv = static_cast<ReferenceKvCache&>(cache);
    const auto& tables = static_cast<const HostRope&>(rope);
    const auto layer = static_cast<std::size_t>(layer_idx);
    for (std::int64_t t = 0; t < qkv.num_tokens; ++t) {
      const auto token = static_cast<std::size_t>(t);
      float* q = qkv.values.matrix<float>().row(t);
      float* k = q + spec.q_width();
      float* v = k + spec.kv_width();
      const auto cos = tables.cos(batch.positions[token]);
      const auto sin = tables.sin(batch.positions[token]);
      for (std::int64_t h = 0; h < spec.num_heads; ++h) rotate(q + h * spec.head_dim, spec.head_dim, cos, sin);
      for (std::int64_t h = 0; h < spec.num_kv_heads; ++h) rotate(k + h * spec.head_dim, spec.head_dim, cos, sin);
      const std::int64_t slot = batch.slot_mapping[token];
      const KvSpec& stored = kv.layer(layer_idx);
      store(k, spec.kv_width(), stored_scale(stored, stored.k_scale), kv.keys[layer].mutable_view().rows(slot, 1));
      store(v, spec.kv_width(), stored_scale(stored, stored.v_scale), kv.values[layer].mutable_view().rows(slot, 1));
    }
  }

  void attention(const Activation& qkv, const AttentionSpec& spec, const KvCache& cache, std::int64_t layer_idx,
                 const ForwardBatch& batch, Activation& out) override {
    const auto& kv = static_cast<const ReferenceKvCache&>(cache);
    out.num_tokens = qkv.num_tokens;
    const std::int64_t heads_per_kv = spec.num_heads / spec.num_kv_heads;
    for (std::int64_t s = 0; s < batch.num_sequences(); ++s) {
      const auto blocks = batch.block_table.subspan(static_cast<std::size_t>(s * batch.block_table_stride),
                                                    static_cast<std::size_t>(batch.block_table_stride));
      const std::int64_t first_token = batch.query_start[static_cast<std::size_t>(s)];
      const std::int64_t num_tokens = batch.query_start[static_cast<std::size_t>(s) + 1] - first_token;
      pool_.run(num_tokens * spec.num_heads, [&](std::int64_t task, int) {
        const std::int64_t t = first_token + task / spec.num_heads;
        const std::int64_t h = task % spec.num_heads;
        const std::int64_t end = batch.positions[static_cast<std::size_t>(t)] + 1;
        const std::int64_t first = spec.sliding_window > 0 ? std::max<std::int64_t>(0, end - spec.sliding_window) : 0;
        HeadAttention attend(kv, layer_idx, blocks, h / heads_per_kv, spec);
        attend(qkv.values.matrix<float>().row(t) + h * spec.head_dim, first, end,
               out.values.matrix<float>().row(t) + h * spec.head_dim);
      });
    }
  }

  void silu_mul(const Activation& gate_up, Activation& out) override {
    out.num_tokens = gate_up.num_tokens;
    const std::int64_t width = out.width();
    for (std::int64_t t = 0; t < out.num_tokens; ++t) {
      const float* gate = gate_up.values.matrix<float>().row(t);
      const float* up = gate + width;
      float* y = out.values.matrix<float>().row(t);
      for (std::int64_t i = 0; i < width; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
  }

  void gather_rows(const Activation& hidden, const ForwardBatch& batch, std::int64_t first, std::int64_t count,
                   Activation& out) override {
    const auto rows = batch.logit_rows.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    out.num_tokens = count;
    for (std::int64_t r = 0; r < out.num_tokens; ++r) {
      std::ranges::copy(hidden.values.matrix<float>().row_span(rows[static_cast<std::size_t>(r)]),
                        out.values.matrix<float>().row(r));
    }
  }

  /// As a device does it: tokens are there at once for the next step, for the host when they are collected.
  void sample(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override {
    std::vector<SampledToken>& sampled = sampled_.emplace_back(out, rows.size()).tokens;
    pool_.run(static_cast<std::int64_t>(rows.size()), [&](std::int64_t r, int) {
      const auto row = static_cast<std::size_t>(r);
      sampled[row] = sample_row(logits.values.matrix<float>().row_span(r), rows[row]);
    });
    last_tokens_.clear();
    for (const SampledToken& token : sampled) last_tokens_.push_back(token.token);
  }
  void collect() override {
    check(!sampled_.empty(), "collect of a sample that was not launched");
    std::ranges::move(sampled_.front().tokens, sampled_.front().out.begin());
    sampled_.pop_front();
  }
  int max_steps_in_flight() const override { return 2; }

  void read(const Activation& from, Matrix<float> to) override { read_host_activation(from, to); }
  void write(Matrix<const float> from, Activation& to) override { write_host_activation(from, to); }

 private:
  struct Sampled {
    Sampled(std::span<SampledToken> to, std::size_t size) : out(to), tokens(size) {}
    std::span<SampledToken> out;
    std::vector<SampledToken> tokens;
  };

  std::int32_t token_of(const ForwardBatch& batch, std::size_t t) const {
    if (batch.sampled_rows.empty() || batch.sampled_rows[t] < 0) return batch.tokens[t];
    return last_tokens_[static_cast<std::size_t>(batch.sampled_rows[t])];
  }

  BackendOptions options_;
  ThreadPool pool_;
  std::deque<Sampled> sampled_;  // and not collected
  std::vector<std::int32_t> last_tokens_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace nibble::backend
