#include "quantize/rtn.h"

#include <memory>
#include <span>
#include <vector>

#include "quantize/quantizer.h"
#include "quantize/tile.h"

namespace nibble::quantize {
namespace {

/// `fit(tile, first_column)` chooses the grid of the group that begins there.
template <class Fit>
weights::GroupedIntWeights round_groups(Matrix<const float> weight, std::int64_t group_size, const GridFormat& format,
                                        ThreadPool& pool, const Fit& fit) {
  GroupedIntWriter writer(weight.rows, weight.cols, format.bits, group_size);
  pool.run(num_tiles(weight.rows), [&](std::int64_t tile_idx, int) {
    const Tile tile = load_tile(weight, tile_idx);
    QuantizedTile quantized(weight.cols, weight.cols / group_size);
    for (std::int64_t first = 0; first < weight.cols; first += group_size) {
      const GroupGrid grid = fit(tile, first);
      quantized.grids[static_cast<std::size_t>(first / group_size)] = grid;
      for (std::int64_t k = first; k < first + group_size; ++k) {
        quantized.codes[k] = round_to_grid(tile[k], grid, format);
      }
    }
    writer.store(tile_idx, quantized);
  });
  return writer.take();
}

class Rtn final : public Quantizer {
 public:
  explicit Rtn(const MethodOptions& options) : options_(options) {}

  std::vector<weights::LinearWeights> quantize(std::span<const FloatLinear> linears, const StageInputs&,
                                               ThreadPool& pool) override {
    std::vector<weights::LinearWeights> quantized;
    for (const FloatLinear& linear : linears) {
      const auto weight = linear.weight.matrix<float>();
      quantized.emplace_back(round_to_nearest(weight, options_.group_size_of(weight.cols), options_.grid, pool));
    }
    return quantized;
  }

 private:
  MethodOptions options_;
};

}  // namespace

weights::GroupedIntWeights round_to_nearest(Matrix<const float> weight, std::int64_t group_size,
                                            const GridFormat& format, ThreadPool& pool) {
  return round_groups(weight, group_size, format, pool, [&](const Tile& tile, std::int64_t first) {
    return fit_min_max(tile, first, group_size, format);
  });
}

weights::GroupedIntWeights round_to_weighted_grid(Matrix<const float> weight, std::span<const float> importance,
                                                  std::int64_t group_size, const GridFormat& format, ThreadPool& pool) {
  return round_groups(weight, group_size, format, pool, [&](const Tile& tile, std::int64_t first) {
    return fit_weighted(
        tile, first, importance.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(group_size)), format);
  });
}

std::unique_ptr<Quantizer> make_rtn(const MethodOptions& options) {
  return std::make_unique<Rtn>(options);
}

}  // namespace nibble::quantize
