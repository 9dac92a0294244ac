#include "quantize/backward.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "quantize/linear_algebra.h"
#include "quantize/vector_math.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kTokensPerTask = 64;
// Queries at once: enough rows for a matrix product, and scores of 128 x 512 stay in the second cache.
constexpr std::int64_t kQueryBlock = 128;

/// Calls body(token) for every row, on the pool's threads.
template <class Body>
void for_each_token(std::int64_t num_tokens, ThreadPool& pool, const Body& body) {
  pool.run((num_tokens + kTokensPerTask - 1) / kTokensPerTask, [&](std::int64_t task, int) {
    const std::int64_t first = task * kTokensPerTask;
    for (std::int64_t t = first; t < std::min(first + kTokensPerTask, num_tokens); ++t) body(t);
  });
}

/// The transposed rotation: pairs are (j, j + head_dim / 2).
void rotate_back_head(const backend::HostRope& rope, std::int64_t position, std::span<float> head) {
  const std::span<const float> cosine = rope.cos(position);
  const std::span<const float> sine = rope.sin(position);
  const std::size_t half = head.size() / 2;
  for (std::size_t j = 0; j < half; ++j) {
    const float first = head[j];
    const float second = head[j + half];
    head[j] = first * cosine[j] + second * sine[j];
    head[j + half] = second * cosine[j] - first * sine[j];
  }
}

/// One (sequence, key-value head) of attention.
class HeadBackward {
 public:
  HeadBackward(Matrix<const float> qkv, const backend::AttentionSpec& spec, Matrix<const float> d_out,
               Matrix<float> d_qkv, std::int64_t kv_head)
      : spec_(spec),
        kv_head_(kv_head),
        qkv_(qkv),
        d_out_(d_out),
        d_qkv_(d_qkv),
        keys_(qkv.columns(key_column(), spec.head_dim)),
        values_(qkv.columns(value_column(), spec.head_dim)),
        d_keys_(d_qkv.columns(key_column(), spec.head_dim)),
        d_values_(d_qkv.columns(value_column(), spec.head_dim)),
        probabilities_(static_cast<std::size_t>(kQueryBlock * qkv.rows)),
        d_scores_(probabilities_.size()) {}

  void run() {
    for (std::int64_t t = 0; t < qkv_.rows; ++t) {
      std::fill_n(d_keys_.row(t), spec_.head_dim, 0.0f);
      std::fill_n(d_values_.row(t), spec_.head_dim, 0.0f);
    }
    const std::int64_t heads_per_kv = spec_.num_heads / spec_.num_kv_heads;
    for (std::int64_t head = kv_head_ * heads_per_kv; head < (kv_head_ + 1) * heads_per_kv; ++head) {
      for (std::int64_t first = 0; first < qkv_.rows; first += kQueryBlock) {
        run_queries(head, first, std::min(kQueryBlock, qkv_.rows - first));
      }
    }
  }

  void rotate_back(const backend::HostRope& rope) const {
    const std::int64_t heads_per_kv = spec_.num_heads / spec_.num_kv_heads;
    for (std::int64_t t = 0; t < qkv_.rows; ++t) {
      for (std::int64_t i = 0; i < heads_per_kv; ++i) {
        const std::int64_t head = kv_head_ * heads_per_kv + i;
        rotate_back_head(rope, t, d_qkv_.columns(head * spec_.head_dim, spec_.head_dim).row_span(t));
      }
      rotate_back_head(rope, t, d_keys_.row_span(t));
    }
  }

 private:
  std::int64_t key_column() const { return spec_.q_width() + kv_head_ * spec_.head_dim; }
  std::int64_t value_column() const { return key_column() + spec_.kv_width(); }

  /// With S = scale q k^T, P = softmax(S), o = P v:  dP = do v^T,  dS = P ∘ (dP - rowsum(P ∘ dP)).
  void run_queries(std::int64_t head, std::int64_t first, std::int64_t count) {
    const std::int64_t first_key = first_visible(first);
    const std::int64_t num_keys = first + count - first_key;
    const Matrix<const float> queries = qkv_.columns(head * spec_.head_dim, spec_.head_dim).block(first, count);
    const Matrix<const float> d_heads = d_out_.columns(head * spec_.head_dim, spec_.head_dim).block(first, count);
    const Matrix<const float> keys = keys_.block(first_key, num_keys);
    const Matrix<float> probabilities{probabilities_.data(), count, num_keys, num_keys};
    const Matrix<float> d_scores{d_scores_.data(), count, num_keys, num_keys};
    multiply_add({queries}, transposed(keys), spec_.scale, 0, probabilities);
    multiply_add({d_heads}, transposed(values_.block(first_key, num_keys)), 1, 0, d_scores);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = first_visible(first + i) - first_key;
      const std::int64_t end = first + i + 1 - first_key;
      softmax_backward(probabilities.row(i), d_scores.row(i), begin, end, num_keys);
    }
    multiply_add(transposed(probabilities), {d_heads}, 1, 1, d_values_.block(first_key, num_keys));
    multiply_add(transposed(d_scores), {queries}, spec_.scale, 1, d_keys_.block(first_key, num_keys));
    multiply_add({d_scores}, {keys}, spec_.scale, 0,
                 d_qkv_.columns(head * spec_.head_dim, spec_.head_dim).block(first, count));
  }

  std::int64_t first_visible(std::int64_t position) const {
    return spec_.sliding_window > 0 ? std::max<std::int64_t>(0, position - spec_.sliding_window + 1) : 0;
  }

  /// scores → probabilities, d_probabilities → d_scores, of keys [begin, end); zero elsewhere.
  static void softmax_backward(float* scores, float* d_scores, std::int64_t begin, std::int64_t end,
                               std::int64_t num_keys) {
    const auto visible = static_cast<std::size_t>(end - begin);
    const std::span<float> p(scores + begin, visible);
    const std::span<float> d(d_scores + begin, visible);
    const float largest = max_of(p);
    for (float& x : p) x = fast_exp(x - largest);
    const float inverse = 1 / sum_of(p);
    for (float& x : p) x *= inverse;
    const float mean = dot(p, d);
    for (std::size_t j = 0; j < visible; ++j) d[j] = p[j] * (d[j] - mean);
    for (float* row : {scores, d_scores}) {
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + num_keys, 0.0f);
    }
  }

  const backend::AttentionSpec& spec_;
  std::int64_t kv_head_;
  Matrix<const float> qkv_;
  Matrix<const float> d_out_;
  Matrix<float> d_qkv_;
  Matrix<const float> keys_;
  Matrix<const float> values_;
  Matrix<float> d_keys_;
  Matrix<float> d_values_;
  std::vector<float> probabilities_;
  std::vector<float> d_scores_;
};

}  // namespace

void rms_norm_backward(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<const float> d_y,
                       Matrix<float> gradient, ThreadPool& pool) {
  check(x.rows == d_y.rows && x.rows == gradient.rows && x.cols == d_y.cols && x.cols == gradient.cols &&
            static_cast<std::int64_t>(weight.size()) == x.cols,
        "rms_norm_backward: shapes");
  for_each_token(x.rows, pool, [&](std::int64_t t) {
    const std::span<const float> row = x.row_span(t);
    const float* d = d_y.row(t);
    float* out = gradient.row(t);
    const auto width = static_cast<float>(row.size());
    const float inverse = 1 / std::sqrt(dot(row, row) / width + eps);
    const float projection = sum_terms(row.size(), [&](std::size_t k) { return weight[k] * d[k] * row[k]; });
    const float along = projection * inverse * inverse / width;
    for (std::size_t k = 0; k < row.size(); ++k) out[k] += inverse * (weight[k] * d[k] - row[k] * along);
  });
}

void silu_mul_backward(Matrix<const float> gate_up, Matrix<const float> d_out, Matrix<float> d_gate_up,
                       ThreadPool& pool) {
  const std::int64_t width = d_out.cols;
  check(gate_up.rows == d_out.rows && d_gate_up.rows == d_out.rows && gate_up.cols == 2 * width &&
            d_gate_up.cols == 2 * width,
        "silu_mul_backward: shapes");
  for_each_token(d_out.rows, pool, [&](std::int64_t t) {
    const float* gate = gate_up.row(t);
    const float* up = gate + width;
    const float* d = d_out.row(t);
    float* d_gate = d_gate_up.row(t);
    float* d_up = d_gate + width;
    for (std::int64_t k = 0; k < width; ++k) {
      const float sigmoid = 1 / (1 + fast_exp(-gate[k]));
      const float silu = gate[k] * sigmoid;
      d_up[k] = d[k] * silu;
      d_gate[k] = d[k] * up[k] * (sigmoid + silu * (1 - sigmoid));
    }
  });
}

void attention_backward(Matrix<const float> qkv, const backend::AttentionSpec& spec, const backend::HostRope& rope,
                        SequenceStarts starts, Matrix<const float> d_out, Matrix<float> d_qkv, ThreadPool& pool) {
  check(qkv.cols == spec.q_width() + 2 * spec.kv_width() && d_qkv.cols == qkv.cols && d_out.cols == spec.q_width() &&
            d_out.rows == qkv.rows && d_qkv.rows == qkv.rows && starts.back() == qkv.rows,
        "attention_backward: shapes");
  const auto num_sequences = static_cast<std::int64_t>(starts.size()) - 1;
  pool.run(num_sequences * spec.num_kv_heads, [&](std::int64_t task, int) {
    const auto sequence = static_cast<std::size_t>(task / spec.num_kv_heads);
    const std::int64_t first = starts[sequence];
    const std::int64_t count = starts[sequence + 1] - first;
    HeadBackward head(qkv.block(first, count), spec, d_out.block(first, count), d_qkv.block(first, count),
                      task % spec.num_kv_heads);
    head.run();
    head.rotate_back(rope);
  });
}

}  // namespace nibble::quantize
