#include "quantize/output_error.h"

#include <cstddef>
#include <vector>

#include "quantize/linear_algebra.h"

namespace nibble::quantize {

double quadratic_form(const Tile& tile, Matrix<const float> gram) {
  const std::int64_t in_features = tile.num_columns();
  Tile product(in_features);
  multiply(gram, tile.columns(0, in_features), product.columns(0, in_features));
  double sum = 0;
  for (std::int64_t k = 0; k < in_features; ++k) {
    for (std::int64_t r = 0; r < kTileRows; ++r) sum += static_cast<double>(tile[k][r]) * product[k][r];
  }
  return sum;
}

double output_error(Matrix<const float> weight, Matrix<const float> quantized, Matrix<const float> gram,
                    ThreadPool& pool) {
  const auto tiles = static_cast<std::size_t>(num_tiles(weight.rows));
  std::vector<double> errors(tiles);
  std::vector<double> outputs(tiles);
  pool.run(static_cast<std::int64_t>(tiles), [&](std::int64_t task, int) {
    Tile original = load_tile(weight, task);
    Tile difference = load_tile(quantized, task);
    for (std::int64_t k = 0; k < weight.cols; ++k) {
      for (std::int64_t r = 0; r < kTileRows; ++r) difference[k][r] -= original[k][r];
    }
    errors[static_cast<std::size_t>(task)] = quadratic_form(difference, gram);
    outputs[static_cast<std::size_t>(task)] = quadratic_form(original, gram);
  });
  double error = 0;
  double output = 0;
  for (std::size_t i = 0; i < tiles; ++i) {
    error += errors[i];
    output += outputs[i];
  }
  return output > 0 ? error / output : 0;
}

}  // namespace nibble::quantize
