#include "quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "core/log.h"
#include "quantize/guided_gptq.h"
#include "quantize/linear_algebra.h"
#include "quantize/quantizer.h"
#include "quantize/tile.h"

namespace nibble::quantize {
namespace {

// Only speed depends on it: inside a block columns are updated one by one, beyond it by one matrix product.
constexpr std::int64_t kColumnBlock = 64;
// With as much added as the mean diagonal, a finite Gram matrix is far from singular.
constexpr double kLargestDampPercent = 1.0;

std::vector<float> read_diagonal(Matrix<const float> gram) {
  std::vector<float> diagonal(static_cast<std::size_t>(gram.rows));
  for (std::int64_t k = 0; k < gram.rows; ++k) {
    diagonal[static_cast<std::size_t>(k)] = gram.row(k)[k];
  }
  return diagonal;
}

/// Mean over the columns that any token reaches; 1 where there is none.
double mean_of_live(const std::vector<float>& diagonal) {
  double sum = 0;
  std::int64_t num_live = 0;
  for (const float value : diagonal) {
    sum += value;
    num_live += value > 0 ? 1 : 0;
  }
  return num_live > 0 ? sum / static_cast<double>(num_live) : 1;
}

std::vector<std::int32_t> column_order(const std::vector<float>& diagonal, ColumnOrder order) {
  std::vector<std::int32_t> columns(diagonal.size());
  std::iota(columns.begin(), columns.end(), 0);
  if (order == ColumnOrder::Natural) return columns;
  std::ranges::stable_sort(columns, [&](std::int32_t a, std::int32_t b) {
    return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
  });
  return columns;
}

/// H in the order of columns, damped. A dead column gets the mean as its diagonal: its row is zero elsewhere.
Tensor damped_hessian(Matrix<const float> gram, const std::vector<std::int32_t>& order, double mean, double damping) {
  Tensor hessian = Tensor::empty(DType::F32, {gram.rows, gram.rows});
  const auto h = hessian.matrix<float>();
  for (std::int64_t i = 0; i < h.rows; ++i) {
    const float* source = gram.row(order[static_cast<std::size_t>(i)]);
    for (std::int64_t j = 0; j < h.cols; ++j) h.row(i)[j] = source[order[static_cast<std::size_t>(j)]];
    const double diagonal = h.row(i)[i] > 0 ? h.row(i)[i] : mean;
    h.row(i)[i] = static_cast<float>(diagonal + damping * mean);
  }
  return hessian;
}

/// Rounds a block of columns; errors[i] becomes what its i-th column left over.
void round_block(Matrix<const float> upper, std::int64_t first, std::int64_t count, Tile& weights, Tile& errors,
                 FunctionRef<void(std::int64_t, const Lanes&, Lanes&)> round) {
  Lanes rounded;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t position = first + i;
    round(position, weights[position], rounded);
    const float* row = upper.row(position);
    const float inverse = 1 / row[position];
    for (std::int64_t r = 0; r < kTileRows; ++r) errors[i][r] = (weights[position][r] - rounded[r]) * inverse;
    for (std::int64_t j = position + 1; j < first + count; ++j) {
      for (std::int64_t r = 0; r < kTileRows; ++r) weights[j][r] -= row[j] * errors[i][r];
    }
  }
}

/// Quantizes the rows of one tile on grids.
class TileSolver {
 public:
  TileSolver(const GptqFactor& factor, std::int64_t group_size, const GridFormat& format)
      : factor_(factor), group_size_(group_size), format_(format) {}

  QuantizedTile solve(const Tile& original) const {
    Tile weights = permute_columns(original, factor_.order);
    QuantizedTile result(original.num_columns(), original.num_columns() / group_size_);
    fit_grids(original, weights, result);
    gptq_columns(weights, factor_, [&](std::int64_t position, const Lanes& column, Lanes& rounded) {
      const GroupGrid& grid = result.grids[static_cast<std::size_t>(group_of(position))];
      Lanes& codes = result.codes[factor_.order[static_cast<std::size_t>(position)]];
      codes = round_to_grid(column, grid, format_);
      rounded = dequantize(codes, grid);
    });
    return result;
  }

 private:
  std::int64_t group_of(std::int64_t position) const {
    const bool by_position = factor_.column_order == ColumnOrder::GroupIndex;
    return (by_position ? position : factor_.order[static_cast<std::size_t>(position)]) / group_size_;
  }

  void fit_grids(const Tile& original, const Tile& permuted, QuantizedTile& result) const {
    const bool by_position = factor_.column_order == ColumnOrder::GroupIndex;
    std::vector<float> importance(factor_.importance);
    if (by_position) {
      for (std::size_t j = 0; j < importance.size(); ++j) {
        importance[j] = factor_.importance[static_cast<std::size_t>(factor_.order[j])];
      }
    }
    const Tile& tile = by_position ? permuted : original;
    for (std::size_t g = 0; g < result.grids.size(); ++g) {
      const std::size_t first = g * static_cast<std::size_t>(group_size_);
      result.grids[g] =
          fit_weighted(tile, static_cast<std::int64_t>(first),
                       std::span(importance).subspan(first, static_cast<std::size_t>(group_size_)), format_);
    }
  }

  const GptqFactor& factor_;
  std::int64_t group_size_;
  GridFormat format_;
};

class Gptq final : public Quantizer {
 public:
  explicit Gptq(const MethodOptions& options) : options_(options) {}

  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs& inputs,
                                               ThreadPool& pool) override {
    const auto order =
        options_.group_index == GroupIndex::DescAct ? ColumnOrder::GroupIndex : ColumnOrder::FallingDiagonal;
    const GptqFactor factor = factorize(inputs.gram.matrix<float>(), order, options_.damp_percent);
    if (factor.damp_percent > options_.damp_percent) {
      log::warning("{}: Hessian singular, damping raised from {} to {}; more calibration samples may help",
                   linears.front().name, options_.damp_percent, factor.damp_percent);
    }
    std::vector<weights::LinearWeights> quantized;
    for (const FloatLinear& linear : linears) {
      quantized.emplace_back(quantize_linear(linear.weight.matrix<float>(), inputs.gram.matrix<float>(), factor, pool));
    }
    return quantized;
  }

 private:
  /// Below 4 bits descent takes a few per cent off the error; at 4 and 8 it takes more time than it is worth.
  weights::GroupedIntWeights quantize_linear(Matrix<const float> weight, Matrix<const float> gram,
                                             const GptqFactor& factor, ThreadPool& pool) const {
    const std::int64_t group_size = options_.group_size_of(weight.cols);
    if (options_.grid.bits < 4 && factor.column_order != ColumnOrder::GroupIndex) {
      return gptq_with_descent(weight, gram, factor, group_size, options_.grid, DescentSchedule(), pool);
    }
    return gptq(weight, factor, group_size, options_.grid, pool);
  }

  MethodOptions options_;
};

}  // namespace

GptqFactor factorize(Matrix<const float> gram, ColumnOrder order, double damp_percent) {
  GptqFactor factor;
  factor.column_order = order;
  const std::vector<float> diagonal = read_diagonal(gram);
  factor.order = column_order(diagonal, order);
  const double mean = mean_of_live(diagonal);
  for (double damping = damp_percent;; damping = std::max(2 * damping, 0.01)) {
    factor.upper = damped_hessian(gram, factor.order, mean, damping);
    factor.damp_percent = damping;
    if (invert_to_upper_cholesky(factor.upper.matrix<float>())) break;
    if (damping > kLargestDampPercent) throw Error(ErrorCode::Corrupt, "the Gram matrix of its inputs is not positive");
  }
  factor.damping = static_cast<float>(factor.damp_percent * mean);
  factor.importance = damped_diagonal(gram, factor.damp_percent);
  return factor;
}

std::vector<float> damped_diagonal(Matrix<const float> gram, double damp_percent) {
  std::vector<float> diagonal = read_diagonal(gram);
  const auto damping = static_cast<float>(damp_percent * mean_of_live(diagonal));
  for (float& value : diagonal) value += damping;
  return diagonal;
}

void gptq_columns(Tile& weights, const GptqFactor& factor,
                  FunctionRef<void(std::int64_t position, const Lanes& weights, Lanes& rounded)> round) {
  const auto upper = factor.upper.matrix<float>();
  Tile errors(kColumnBlock);
  for (std::int64_t first = 0; first < upper.rows; first += kColumnBlock) {
    const std::int64_t count = std::min(kColumnBlock, upper.rows - first);
    round_block(upper, first, count, weights, errors, round);
    // The columns beyond the block take the block's errors at once.
    const std::int64_t rest = upper.rows - first - count;
    if (rest == 0) return;
    subtract_product(upper.block(first, count).columns(first + count, rest), errors.columns(0, count),
                     weights.columns(first + count, rest));
  }
}

QuantizedTile gptq_tile(const Tile& weights, const GptqFactor& factor, std::int64_t group_size,
                        const GridFormat& format) {
  return TileSolver(factor, group_size, format).solve(weights);
}

weights::GroupedIntWeights gptq(Matrix<const float> weight, const GptqFactor& factor, std::int64_t group_size,
                                const GridFormat& format, ThreadPool& pool) {
  GroupedIntWriter writer(weight.rows, weight.cols, format.bits, group_size);
  pool.run(num_tiles(weight.rows), [&](std::int64_t tile_idx, int) {
    writer.store(tile_idx, gptq_tile(load_tile(weight, tile_idx), factor, group_size, format));
  });
  if (factor.column_order == ColumnOrder::GroupIndex) {
    std::vector<std::int32_t> g_idx(factor.order.size());
    for (std::size_t j = 0; j < g_idx.size(); ++j) {
      g_idx[static_cast<std::size_t>(factor.order[j])] =
          static_cast<std::int32_t>(static_cast<std::int64_t>(j) / group_size);
    }
    writer.set_g_idx(g_idx);
  }
  return writer.take();
}

std::unique_ptr<Quantizer> make_gptq(const MethodOptions& options) {
  if (options.guidance == Guidance::EndLoss) return make_guided_gptq(options);
  return std::make_unique<Gptq>(options);
}

}  // namespace nibble::quantize
