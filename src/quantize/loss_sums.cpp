#include "quantize/loss_sums.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "quantize/linear_algebra.h"
#include "quantize/vector_math.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kRowsPerTask = 64;

/// Calls body(row) for every row, on the pool's threads.
template <class Body>
void for_each_row(std::int64_t num_rows, ThreadPool& pool, const Body& body) {
  pool.run((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t first = task * kRowsPerTask;
    for (std::int64_t r = first; r < std::min(first + kRowsPerTask, num_rows); ++r) body(r);
  });
}

void square(Matrix<const float> from, Matrix<float> to, ThreadPool& pool) {
  for_each_row(from.rows, pool, [&](std::int64_t r) {
    const float* x = from.row(r);
    float* y = to.row(r);
    for (std::int64_t k = 0; k < from.cols; ++k) y[k] = x[k] * x[k];
  });
}

}  // namespace

LossSums::LossSums(std::span<const FloatLinear> linears, const LossNeeds& needs, FisherForm fisher_form)
    : needs_(needs), fisher_form_(fisher_form) {
  const std::int64_t in_features = linears.front().weight.shape()[1];
  if (needs.gram) statistics_.gram = Tensor::zeros(DType::F32, {in_features, in_features});
  for (const FloatLinear& linear : linears) {
    out_features_.push_back(linear.weight.shape()[0]);
    LossStatistics& statistics = statistics_.linears.emplace_back();
    if (needs.fisher) statistics.fisher = Tensor::zeros(DType::F32, linear.weight.shape());
    if (needs.guided_gram) statistics.guided_gram = Tensor::zeros(DType::F32, {in_features, in_features});
  }
}

void LossSums::add(Matrix<const float> inputs, Matrix<const float> d_outputs, SequenceStarts starts, ThreadPool& pool) {
  if (needs_.gram) accumulate_gram(inputs, statistics_.gram.matrix<float>(), pool);
  std::int64_t column = 0;
  for (std::size_t i = 0; i < statistics_.linears.size(); ++i) {
    const Matrix<const float> deltas = d_outputs.columns(column, out_features_[i]);
    LossStatistics& linear = statistics_.linears[i];
    if (needs_.guided_gram) add_guided(inputs, deltas, linear.guided_gram.matrix<float>(), pool);
    if (needs_.fisher && fisher_form_ == FisherForm::Sequence) {
      add_sequences(inputs, deltas, starts, linear.fisher.matrix<float>(), pool);
    }
    column += out_features_[i];
  }
  if (needs_.fisher && fisher_form_ == FisherForm::Token) add_tokens(inputs, d_outputs, pool);
  statistics_.num_tokens += inputs.rows;
}

/// Per-token gradients are δ_tn x_tk, so the sum of their squares is one product of squares.
void LossSums::add_tokens(Matrix<const float> inputs, Matrix<const float> d_outputs, ThreadPool& pool) {
  const Matrix<float> squared_inputs = scratch(input_scratch_, inputs.rows, inputs.cols);
  square(inputs, squared_inputs, pool);
  std::int64_t column = 0;
  for (std::size_t i = 0; i < statistics_.linears.size(); ++i) {
    const Matrix<float> squared_deltas = scratch(output_scratch_, inputs.rows, out_features_[i]);
    square(d_outputs.columns(column, out_features_[i]), squared_deltas, pool);
    accumulate_product(squared_deltas, squared_inputs, statistics_.linears[i].fisher.matrix<float>(), pool);
    column += out_features_[i];
  }
}

void LossSums::add_sequences(Matrix<const float> inputs, Matrix<const float> d_outputs, SequenceStarts starts,
                             Matrix<float> fisher, ThreadPool& pool) {
  const Matrix<float> gradient = scratch(output_scratch_, fisher.rows, fisher.cols);
  for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
    const std::int64_t count = starts[s + 1] - starts[s];
    std::fill_n(gradient.data, gradient.rows * gradient.cols, 0.0f);
    accumulate_product(d_outputs.block(starts[s], count), inputs.block(starts[s], count), gradient, pool);
    for_each_row(fisher.rows, pool, [&](std::int64_t r) {
      const float* g = gradient.row(r);
      float* f = fisher.row(r);
      for (std::int64_t k = 0; k < fisher.cols; ++k) f[k] += g[k] * g[k];
    });
  }
}

/// Σ s x x^T is the Gram matrix of √s x.
void LossSums::add_guided(Matrix<const float> inputs, Matrix<const float> d_outputs, Matrix<float> gram,
                          ThreadPool& pool) {
  const Matrix<float> scaled = scratch(input_scratch_, inputs.rows, inputs.cols);
  for_each_row(inputs.rows, pool, [&](std::int64_t t) {
    const std::span<const float> delta = d_outputs.row_span(t);
    const float weight = std::sqrt(dot(delta, delta) / static_cast<float>(delta.size()));
    const float* x = inputs.row(t);
    float* y = scaled.row(t);
    for (std::int64_t k = 0; k < inputs.cols; ++k) y[k] = weight * x[k];
  });
  accumulate_gram(scaled, gram, pool);
}

StageLossStatistics LossSums::take() {
  if (needs_.gram) mirror_upper(statistics_.gram.matrix<float>());
  for (LossStatistics& linear : statistics_.linears) {
    if (needs_.guided_gram) mirror_upper(linear.guided_gram.matrix<float>());
  }
  return std::move(statistics_);
}

Matrix<float> LossSums::scratch(std::vector<float>& storage, std::int64_t rows, std::int64_t cols) {
  storage.resize(std::max(storage.size(), static_cast<std::size_t>(rows * cols)));
  return {storage.data(), rows, cols, cols};
}

}  // namespace nibble::quantize
