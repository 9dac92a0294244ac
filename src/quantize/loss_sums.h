#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/backward.h"
#include "quantize/float_block.h"
#include "quantize/loss_statistics.h"

namespace nibble::quantize {

/// Sums up the loss statistics of one stage, batch after batch. One thread calls it.
class LossSums {
 public:
  LossSums(std::span<const FloatLinear> linears, const LossNeeds& needs, FisherForm fisher_form);

  /// inputs [tokens, in], d_outputs [tokens, out of all linears]: ∂L/∂y, the linears' columns one after another.
  void add(Matrix<const float> inputs, Matrix<const float> d_outputs, SequenceStarts starts, ThreadPool& pool);

  /// Once.
  StageLossStatistics take();

 private:
  void add_tokens(Matrix<const float> inputs, Matrix<const float> d_outputs, ThreadPool& pool);
  void add_guided(Matrix<const float> inputs, Matrix<const float> d_outputs, Matrix<float> gram, ThreadPool& pool);
  void add_sequences(Matrix<const float> inputs, Matrix<const float> d_outputs, SequenceStarts starts,
                     Matrix<float> fisher, ThreadPool& pool);
  static Matrix<float> scratch(std::vector<float>& storage, std::int64_t rows, std::int64_t cols);

  LossNeeds needs_;
  FisherForm fisher_form_;
  std::vector<std::int64_t> out_features_;  // of each linear
  StageLossStatistics statistics_;
  std::vector<float> input_scratch_;   // [tokens, in]
  std::vector<float> output_scratch_;  // [tokens, out] of one linear, or [out, in]
};

}  // namespace nibble::quantize
