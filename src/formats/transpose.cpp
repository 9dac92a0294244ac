#include "formats/transpose.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace nibble::formats {
namespace {

/// A row of a tile is a cache line of words or half of one.
constexpr std::int64_t kTile = 16;

/// Columns of `from`, one after the other, into the rows of `tile`.
template <class Word>
void gather_tile(const Word* from, std::int64_t row_stride, std::int64_t rows, std::int64_t cols,
                 Word (&tile)[kTile][kTile]) {
  if (rows == kTile && cols == kTile) {  // of known size: unrolled
    for (std::int64_t r = 0; r < kTile; ++r) {
      for (std::int64_t c = 0; c < kTile; ++c) tile[c][r] = from[r * row_stride + c];
    }
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) tile[c][r] = from[r * row_stride + c];
  }
}

/// Through a tile of its own: rows of matrices whose width is a power of two share a few cache sets, and sixteen of
/// them push one another out.
template <class Word>
void transpose_words(const Word* from, std::int64_t row_stride, std::int64_t rows, std::int64_t cols, Word* to) {
  Word tile[kTile][kTile];
  for (std::int64_t c0 = 0; c0 < cols; c0 += kTile) {
    const std::int64_t tile_cols = std::min(kTile, cols - c0);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
      const std::int64_t tile_rows = std::min(kTile, rows - r0);
      gather_tile(from + r0 * row_stride + c0, row_stride, tile_rows, tile_cols, tile);
      for (std::int64_t c = 0; c < tile_cols; ++c) {
        std::memcpy(to + (c0 + c) * rows + r0, tile[c], static_cast<std::size_t>(tile_rows) * sizeof(Word));
      }
    }
  }
}

}  // namespace

Tensor transpose(TensorView matrix) {
  check(matrix.shape().rank() == 2, "transpose of a tensor that is no matrix");
  Tensor transposed = Tensor::empty(matrix.dtype(), {matrix.shape()[1], matrix.shape()[0]});
  transpose(matrix, transposed.mutable_view());
  return transposed;
}

void transpose(TensorView matrix, MutableTensorView to) {
  check(matrix.shape().rank() == 2 && to.is_contiguous() && to.size_bytes() == matrix.size_bytes(),
        "transpose into a contiguous matrix of the same size");
  const auto run = [&](auto word) {
    using Word = decltype(word);
    transpose_words(static_cast<const Word*>(matrix.data()), matrix.row_stride(), matrix.shape()[0], matrix.shape()[1],
                    static_cast<Word*>(to.data()));
  };
  switch (size_bytes(matrix.dtype())) {
    case 1: run(std::uint8_t{}); break;
    case 2: run(std::uint16_t{}); break;
    case 4: run(std::uint32_t{}); break;
    default: run(std::uint64_t{}); break;
  }
}

}  // namespace nibble::formats
