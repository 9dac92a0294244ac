#include "quantize/tile.h"

#include <algorithm>
#include <cstddef>

namespace nibble::quantize {

std::int64_t num_tiles(std::int64_t out_features) {
  return (out_features + kTileRows - 1) / kTileRows;
}

Tile load_tile(Matrix<const float> weight, std::int64_t tile_idx) {
  const std::int64_t first_row = tile_idx * kTileRows;
  const std::int64_t num_rows = std::min(kTileRows, weight.rows - first_row);
  Tile tile(weight.cols);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    const float* row = weight.row(first_row + r);
    for (std::int64_t k = 0; k < weight.cols; ++k) tile[k][r] = row[k];
  }
  return tile;
}

Tile permute_columns(const Tile& tile, const std::vector<std::int32_t>& order) {
  Tile permuted(tile.num_columns());
  for (std::int64_t j = 0; j < tile.num_columns(); ++j) permuted[j] = tile[order[static_cast<std::size_t>(j)]];
  return permuted;
}

GroupedIntWriter::GroupedIntWriter(std::int64_t out_features, std::int64_t in_features, std::int32_t bits,
                                   std::int64_t group_size) {
  check(group_size > 0 && in_features % group_size == 0, "groups that do not divide a row");
  const std::int64_t num_groups = in_features / group_size;
  weights_.out_features = out_features;
  weights_.in_features = in_features;
  weights_.bits = bits;
  weights_.group_size = group_size;
  weights_.codes = Tensor::zeros(DType::U8, {out_features, weights::packed_row_bytes(in_features, bits)});
  weights_.scales = Tensor::empty(DType::F16, {out_features, num_groups});
  weights_.zeros = Tensor::empty(DType::I16, {out_features, num_groups});
}

void GroupedIntWriter::store(std::int64_t tile_idx, const QuantizedTile& tile) {
  const std::int64_t first_row = tile_idx * kTileRows;
  const std::int64_t num_rows = std::min(kTileRows, weights_.out_features - first_row);
  const auto packed = weights_.codes.matrix<std::uint8_t>();
  const auto scales = weights_.scales.matrix<Half>();
  const auto zeros = weights_.zeros.matrix<std::int16_t>();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(weights_.in_features));
  for (std::int64_t r = 0; r < num_rows; ++r) {
    for (std::int64_t k = 0; k < weights_.in_features; ++k) {
      codes[static_cast<std::size_t>(k)] = static_cast<std::uint8_t>(tile.codes[k][r]);
    }
    weights::pack_codes(codes, weights_.bits, packed.row_span(first_row + r));
    for (std::int64_t g = 0; g < scales.cols; ++g) {
      const GroupGrid& grid = tile.grids[static_cast<std::size_t>(g)];
      scales.row(first_row + r)[g] = to_half(grid.scale[r]);
      zeros.row(first_row + r)[g] = static_cast<std::int16_t>(grid.zero[r]);
    }
  }
}

void GroupedIntWriter::set_g_idx(const std::vector<std::int32_t>& g_idx) {
  weights_.g_idx = Tensor::empty(DType::I32, {weights_.in_features});
  std::ranges::copy(g_idx, weights_.g_idx.span<std::int32_t>().begin());
}

}  // namespace nibble::quantize
