#include "quantize/drift.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "quantize/calibration_linear.h"
#include "quantize/gptq.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

// Of a weight matrix, for a task: enough for matrix products at full speed.
constexpr std::int64_t kRowsPerTask = 64;
// A whole correction loses more to overfitting than it gains.
constexpr std::int64_t kQuickRunTokens = 32768;

}  // namespace

void correct_drift(std::vector<FloatLinear>& linears, const StageInputs& inputs, const Drift& drift, double strength,
                   ThreadPool& pool) {
  const double damp_percent = kDriftPriorTokens / static_cast<double>(inputs.num_tokens);
  const GptqFactor factor = factorize(inputs.gram.matrix<float>(), ColumnOrder::Natural, damp_percent);
  const auto upper = factor.upper.matrix<float>();
  const auto d = drift.input.matrix<float>();
  const auto scale = static_cast<float>(strength);
  std::int64_t first_output = 0;
  for (FloatLinear& linear : linears) {
    const auto weight = linear.weight.matrix<float>();
    pool.run((weight.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
      const std::int64_t first = task * kRowsPerTask;
      const Matrix<float> rows = weight.block(first, std::min(kRowsPerTask, weight.rows - first));
      Tensor change = Tensor::zeros(DType::F32, {rows.rows, rows.cols});
      const auto delta = change.matrix<float>();
      if (!drift.residual.is_empty()) {
        const auto e = drift.residual.matrix<float>().block(first_output + first, rows.rows);
        std::copy_n(e.data, rows.rows * rows.cols, delta.data);
      }
      multiply_add({rows}, {d}, 1, 1, delta);
      multiply_by_inverse(upper, delta);
      for (std::int64_t o = 0; o < rows.rows; ++o) {
        for (std::int64_t k = 0; k < rows.cols; ++k) rows.row(o)[k] += scale * delta.row(o)[k];
      }
    });
    first_output += weight.rows;
  }
}

double default_drift_correction(const Method& method, const MethodOptions& options,
                                const CalibrationOptions& calibration) {
  if (method.name != "gptq" || options.guidance == Guidance::EndLoss || options.grid.bits != 4) return 0;
  return calibration.num_samples * calibration.seq_len < kQuickRunTokens ? 0 : kBestDriftCorrection;
}

void FloatStream::enter(models::DecoderBlock decoder) {
  decoder_.emplace(std::move(decoder));
  stream_->enter(*decoder_);
}

Drift FloatStream::measure_drift(const ActivationStream& quantized, std::size_t stage_idx) const {
  Drift drift{.input = quantized.input_drift_from(*stream_), .residual = {}};
  if (decoder_->spec().stages[stage_idx].adds_to_hidden) drift.residual = quantized.residual_drift_from(*stream_);
  return drift;
}

void FloatStream::advance(const std::vector<FloatLinear>& linears, std::size_t stage_idx) {
  decoder_->set_linear(stage_idx, make_calibration_linear(linears, pool_));
  if (stage_idx + 1 < decoder_->spec().stages.size()) {
    stream_->advance(*decoder_, stage_idx);
    decoder_->set_linear(stage_idx, nullptr);
  } else {
    stream_->leave(*decoder_);
    decoder_.reset();
  }
}

}  // namespace nibble::quantize
