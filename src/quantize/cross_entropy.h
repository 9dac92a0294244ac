#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/loss_statistics.h"

namespace nibble::quantize {

/// The labels of consecutive tokens.
struct LabelSource {
  LossOptions options;
  std::int64_t first_position = 0;           // of the first row among all calibration tokens; seeds its draw
  std::span<const std::int32_t> next_token;  // [rows] for LossLabels::Text: the token that follows, or -1
};

/// Turns logits [rows, vocab_size] into ∂L/∂logits of L = Σ_rows CE(logits, label) = softmax - onehot(label); a row
/// without a label gets zero. Returns L. A draw depends on seed and position alone.
/// Errors: Corrupt where logits are not finite.
double cross_entropy_backward(Matrix<float> logits, const LabelSource& labels, ThreadPool& pool);

}  // namespace nibble::quantize
