#include "quantize/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/error.h"
#include "quantize/vector_math.h"

namespace nibble::quantize {
namespace {

constexpr std::size_t kSumBlock = 256;

/// Uniform in [0, 1), by SplitMix64 of (seed, position).
double uniform(std::uint64_t seed, std::uint64_t position) {
  std::uint64_t x = seed * 0xd1342543de82ef95u + (position + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

/// One row: its softmax before the division, block sums kept for the draw.
class Softmax {
 public:
  explicit Softmax(std::span<float> row) : row_(row), largest_(max_of(row)) {
    for (float& x : row_) x = fast_exp(x - largest_);
    for (std::size_t first = 0; first < row_.size(); first += kSumBlock) {
      block_sums_.push_back(sum_of(block(first)));
      total_ += block_sums_.back();
    }
  }

  bool is_finite() const { return std::isfinite(largest_) && std::isfinite(total_); }

  std::int32_t draw(double u) const {
    double left = u * total_;
    for (std::size_t b = 0; b < block_sums_.size(); ++b) {
      if (left >= block_sums_[b] && b + 1 < block_sums_.size()) {
        left -= block_sums_[b];
        continue;
      }
      return static_cast<std::int32_t>(b * kSumBlock + draw_in(block(b * kSumBlock), left));
    }
    return 0;
  }

  /// The row becomes softmax - onehot(label). Returns -log softmax(label).
  double subtract_label(std::int32_t label) {
    float& at_label = row_[static_cast<std::size_t>(label)];
    const double loss = std::log(total_) - std::log(static_cast<double>(at_label));
    const auto inverse = static_cast<float>(1 / total_);
    for (float& p : row_) p *= inverse;
    at_label -= 1;
    return loss;
  }

 private:
  std::span<const float> block(std::size_t first) const {
    return row_.subspan(first, std::min(kSumBlock, row_.size() - first));
  }
  static std::size_t draw_in(std::span<const float> block, double left) {
    for (std::size_t k = 0; k + 1 < block.size(); ++k) {
      if (left < block[k]) return k;
      left -= block[k];
    }
    return block.size() - 1;
  }

  std::span<float> row_;
  float largest_;
  std::vector<float> block_sums_;
  double total_ = 0;
};

/// NaN for a row that is not finite.
double row_backward(std::span<float> row, std::size_t row_idx, const LabelSource& labels) {
  const bool is_sampled = labels.options.labels == LossLabels::Sampled;
  if (!is_sampled && labels.next_token[row_idx] < 0) {
    std::ranges::fill(row, 0.0f);
    return 0;
  }
  Softmax softmax(row);
  if (!softmax.is_finite()) return std::nan("");
  const std::uint64_t position = static_cast<std::uint64_t>(labels.first_position) + row_idx;
  return softmax.subtract_label(is_sampled ? softmax.draw(uniform(labels.options.seed, position))
                                           : labels.next_token[row_idx]);
}

}  // namespace

double cross_entropy_backward(Matrix<float> logits, const LabelSource& labels, ThreadPool& pool) {
  std::vector<double> losses(static_cast<std::size_t>(logits.rows));
  pool.run(logits.rows, [&](std::int64_t r, int) {
    const auto row_idx = static_cast<std::size_t>(r);
    losses[row_idx] = row_backward(logits.row_span(r), row_idx, labels);
  });
  double sum = 0;
  for (const double loss : losses) sum += loss;
  if (!std::isfinite(sum)) {
    throw Error(ErrorCode::Corrupt, "the float model's logits hold NaN or infinity during calibration");
  }
  return sum;
}

}  // namespace nibble::quantize
