#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "weights/linear_weights.h"

/// Output rows are independent while a linear is quantized. They go through it in tiles of kTileRows, transposed:
/// element (k, r) of a tile is weight[first_row + r, k]. Inner loops then run over rows, which compilers vectorize
/// without changing the order of any sum.
namespace nibble::quantize {

inline constexpr std::int64_t kTileRows = 64;

/// One number for each row of a tile.
struct alignas(64) Lanes {
  std::array<float, kTileRows> values;
  float& operator[](std::int64_t r) { return values[static_cast<std::size_t>(r)]; }
  float operator[](std::int64_t r) const { return values[static_cast<std::size_t>(r)]; }
};

/// Lanes for each input column, or for each group: [num_columns, kTileRows].
class Tile {
 public:
  explicit Tile(std::int64_t num_columns) : lanes_(static_cast<std::size_t>(num_columns)) {}
  std::int64_t num_columns() const { return static_cast<std::int64_t>(lanes_.size()); }
  Lanes& operator[](std::int64_t k) { return lanes_[static_cast<std::size_t>(k)]; }
  const Lanes& operator[](std::int64_t k) const { return lanes_[static_cast<std::size_t>(k)]; }
  Matrix<float> columns(std::int64_t first, std::int64_t count) {
    return {lanes_[static_cast<std::size_t>(first)].values.data(), count, kTileRows, kTileRows};
  }
  Matrix<const float> columns(std::int64_t first, std::int64_t count) const {
    return {lanes_[static_cast<std::size_t>(first)].values.data(), count, kTileRows, kTileRows};
  }

 private:
  std::vector<Lanes> lanes_;
};

std::int64_t num_tiles(std::int64_t out_features);
/// Tile `tile_idx` of a weight [out, in]; rows beyond the last are zero.
Tile load_tile(Matrix<const float> weight, std::int64_t tile_idx);
/// Column j of the result is column order[j] of `tile`.
Tile permute_columns(const Tile& tile, const std::vector<std::int32_t>& order);

/// The affine grid of one group in each row of a tile: w ≈ scale * (code - zero). Scales are not zero, finite and
/// exact in f16; they may be negative. Zeros are whole numbers.
struct GroupGrid {
  Lanes scale;
  Lanes zero;
};

/// What becomes of one tile.
struct QuantizedTile {
  QuantizedTile(std::int64_t in_features, std::int64_t num_groups)
      : codes(in_features), grids(static_cast<std::size_t>(num_groups)) {}
  Tile codes;                    // [in, rows]: whole numbers 0 … 2^bits - 1
  std::vector<GroupGrid> grids;  // one a group
};

/// Puts tiles together to the canonical struct. Tiles may be stored from several threads.
class GroupedIntWriter {
 public:
  /// `group_size` divides in_features.
  GroupedIntWriter(std::int64_t out_features, std::int64_t in_features, std::int32_t bits, std::int64_t group_size);
  void store(std::int64_t tile_idx, const QuantizedTile& tile);
  void set_g_idx(const std::vector<std::int32_t>& g_idx);
  weights::GroupedIntWeights take() { return std::move(weights_); }

 private:
  weights::GroupedIntWeights weights_;
};

}  // namespace nibble::quantize
