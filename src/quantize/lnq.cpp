#include "quantize/lnq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/dtype.h"
#include "quantize/residual.h"
#include "quantize/table_fit.h"
#include "quantize/tile.h"

namespace nibble::quantize {
namespace {

/// One tile of rows with their tables.
class TileLnq {
 public:
  TileLnq(const Tile& weights, const SparsePositions& sparse, std::int64_t first_row, const Hessian& hessian,
          Tile tables)
      : hessian_(hessian), tables_(std::move(tables)), codes_(weights.num_columns()), weights_(weights) {
    mark_sparse(sparse, first_row);
  }

  void start(const GptqFactor& factor) {
    Tile permuted = permute_columns(weights_, factor.order);
    gptq_columns(permuted, factor, [&](std::int64_t position, const Lanes& column, Lanes& rounded) {
      rounded = choose_nearest(column, codes_[factor.order[static_cast<std::size_t>(position)]]);
    });
  }

  void refine(const LnqSchedule& schedule) {
    Residual residual(hessian_, difference());
    for (int round = 0; round < schedule.rounds; ++round) {
      refit_tables(residual);
      for (int i = 0; i < schedule.sweeps; ++i) sweep(residual);
    }
  }

  const Tile& tables() const { return tables_; }
  const Tile& codes() const { return codes_; }

 private:
  void mark_sparse(const SparsePositions& sparse, std::int64_t first_row) {
    const auto num_rows = static_cast<std::int64_t>(sparse.rows.size()) - 1;
    for (std::int64_t r = 0; r < std::min(kTileRows, num_rows - first_row); ++r) {
      for (const std::int32_t column : sparse.row(first_row + r)) codes_[column][r] = kSparseCode;
    }
  }

  /// The entry nearest to each value; a sparse position keeps its code and stands for 0.
  Lanes choose_nearest(const Lanes& values, Lanes& codes) const {
    Lanes nearest = tables_[0];
    Lanes distance;
    Lanes found{};
    for (std::int64_t r = 0; r < kTileRows; ++r) distance[r] = std::abs(values[r] - nearest[r]);
    for (std::int64_t c = 1; c < tables_.num_columns(); ++c) {
      const Lanes& entry = tables_[c];
      const auto code = static_cast<float>(c);
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        const float other = std::abs(values[r] - entry[r]);
        const bool nearer = other < distance[r];
        distance[r] = nearer ? other : distance[r];
        nearest[r] = nearer ? entry[r] : nearest[r];
        found[r] = nearer ? code : found[r];
      }
    }
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const bool is_sparse = codes[r] == kSparseCode;
      nearest[r] = is_sparse ? 0.0f : nearest[r];
      codes[r] = is_sparse ? kSparseCode : found[r];
    }
    return nearest;
  }

  Lanes value_of(const Lanes& codes) const {
    Lanes values;
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      values[r] = codes[r] == kSparseCode ? 0.0f : tables_[static_cast<std::int64_t>(codes[r])][r];
    }
    return values;
  }

  Tile difference() const {
    Tile difference(weights_.num_columns());
    for (std::int64_t k = 0; k < weights_.num_columns(); ++k) {
      const Lanes values = value_of(codes_[k]);
      for (std::int64_t r = 0; r < kTileRows; ++r) difference[k][r] = weights_[k][r] - values[r];
    }
    return difference;
  }

  void sweep(Residual& residual) {
    residual.sweep([&](std::int32_t column, const Lanes& best, Lanes& step) {
      Lanes& codes = codes_[column];
      const Lanes current = value_of(codes);
      Lanes target;
      for (std::int64_t r = 0; r < kTileRows; ++r) target[r] = current[r] + best[r];
      const Lanes moved = choose_nearest(target, codes);
      float any = 0;
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        step[r] = moved[r] - current[r];
        any = std::max(any, std::abs(step[r]));
      }
      return any > 0;
    });
  }

  void refit_tables(Residual& residual) {
    const Tile before = tables_;
    fit_tables_to_codes(hessian_, codes_, residual, tables_);
    Tile steps(codes_.num_columns());
    for (std::int64_t k = 0; k < codes_.num_columns(); ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        const auto code = static_cast<std::int64_t>(codes_[k][r]);
        steps[k][r] = codes_[k][r] == kSparseCode ? 0.0f : tables_[code][r] - before[code][r];
      }
    }
    residual.move(0, codes_.num_columns(), steps);
  }

  const Hessian& hessian_;
  Tile tables_;  // [entries, rows]
  Tile codes_;   // [in, rows]
  const Tile& weights_;
};

Tile load_tables(Matrix<const Half> tables, std::int64_t first_row) {
  Tile tile(tables.cols);
  for (std::int64_t r = 0; r < std::min(kTileRows, tables.rows - first_row); ++r) {
    for (std::int64_t c = 0; c < tables.cols; ++c) tile[c][r] = to_float(tables.row(first_row + r)[c]);
  }
  return tile;
}

void store(const TileLnq& tile, std::int64_t first_row, Matrix<Half> tables, Matrix<std::uint8_t> codes) {
  for (std::int64_t r = 0; r < std::min(kTileRows, codes.rows - first_row); ++r) {
    for (std::int64_t c = 0; c < tables.cols; ++c) tables.row(first_row + r)[c] = to_half(tile.tables()[c][r]);
    for (std::int64_t k = 0; k < codes.cols; ++k) {
      codes.row(first_row + r)[k] = static_cast<std::uint8_t>(std::max(tile.codes()[k][r], 0.0f));
    }
  }
}

}  // namespace

Tensor refine_codebook(Matrix<const float> dense, const SparsePositions& sparse, Matrix<const float> gram,
                       const GptqFactor& factor, const LnqSchedule& schedule, Tensor& tables, ThreadPool& pool) {
  const Hessian hessian{gram, factor.damping, factor.order};
  Tensor codes = Tensor::empty(DType::U8, {dense.rows, dense.cols});
  pool.run(num_tiles(dense.rows), [&](std::int64_t tile_idx, int) {
    const std::int64_t first_row = tile_idx * kTileRows;
    const Tile weights = load_tile(dense, tile_idx);
    TileLnq tile(weights, sparse, first_row, hessian, load_tables(tables.matrix<Half>(), first_row));
    tile.start(factor);
    tile.refine(schedule);
    store(tile, first_row, tables.matrix<Half>(), codes.matrix<std::uint8_t>());
  });
  return codes;
}

}  // namespace nibble::quantize
