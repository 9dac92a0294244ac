#include "quantize/residual.h"

#include <algorithm>
#include <cstddef>

#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

// Inside a block of columns the residual is updated column by column, beyond it by one matrix product.
constexpr std::int64_t kColumnBlock = 64;

}  // namespace

Residual::Residual(const Hessian& hessian, const Tile& difference)
    : hessian_(hessian),
      residual_(difference.num_columns()),
      steps_(kColumnBlock),
      local_(kColumnBlock),
      panel_(static_cast<std::size_t>(kColumnBlock * difference.num_columns())) {
  const std::int64_t in_features = difference.num_columns();
  multiply(hessian.gram, difference.columns(0, in_features), residual_.columns(0, in_features));
  for (std::int64_t k = 0; k < in_features; ++k) {
    for (std::int64_t r = 0; r < kTileRows; ++r) residual_[k][r] += hessian.damping * difference[k][r];
  }
}

void Residual::sweep(FunctionRef<bool(std::int32_t column, const Lanes& best, Lanes& step)> choose) {
  const std::int64_t in_features = residual_.num_columns();
  for (std::int64_t first = 0; first < in_features; first += kColumnBlock) {
    const std::int64_t count = std::min(kColumnBlock, in_features - first);
    const std::span<const std::int32_t> columns(hessian_.order.data() + first, static_cast<std::size_t>(count));
    if (!step_columns(columns, choose)) continue;
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(hessian_.gram.row(columns[static_cast<std::size_t>(i)]), in_features,
                  panel_.data() + i * in_features);
    }
    const Matrix<const float> panel{panel_.data(), count, in_features, in_features};
    subtract_product(panel, steps_.columns(0, count), residual_.columns(0, in_features));
    for (std::int64_t i = 0; i < count; ++i) {
      Lanes& own = residual_[columns[static_cast<std::size_t>(i)]];
      for (std::int64_t r = 0; r < kTileRows; ++r) own[r] -= hessian_.damping * steps_[i][r];
    }
  }
}

/// Returns whether any of the columns moved.
bool Residual::step_columns(std::span<const std::int32_t> columns,
                            FunctionRef<bool(std::int32_t, const Lanes&, Lanes&)> choose) {
  const auto count = static_cast<std::int64_t>(columns.size());
  for (std::int64_t i = 0; i < count; ++i) local_[i] = residual_[columns[static_cast<std::size_t>(i)]];
  bool any = false;
  Lanes best;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t column = columns[static_cast<std::size_t>(i)];
    const float* row = hessian_.gram.row(column);
    const float inverse = 1 / (row[column] + hessian_.damping);
    for (std::int64_t r = 0; r < kTileRows; ++r) best[r] = local_[i][r] * inverse;
    const Lanes& step = steps_[i];
    if (!choose(column, best, steps_[i])) continue;
    any = true;
    for (std::int64_t j = i + 1; j < count; ++j) {
      const float coupling = row[columns[static_cast<std::size_t>(j)]];
      for (std::int64_t r = 0; r < kTileRows; ++r) local_[j][r] -= coupling * step[r];
    }
  }
  return any;
}

void Residual::move(std::int64_t first, std::int64_t count, const Tile& steps) {
  const std::int64_t in_features = residual_.num_columns();
  subtract_product(hessian_.gram.block(first, count), steps.columns(0, count), residual_.columns(0, in_features));
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t r = 0; r < kTileRows; ++r) residual_[first + i][r] -= hessian_.damping * steps[i][r];
  }
}

}  // namespace nibble::quantize
