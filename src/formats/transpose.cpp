#include "formats/transpose.h"

#include <algorithm>
#include <cstdint>

namespace nibble::formats {
namespace {

/// Two tiles of 16 x 16 elements of up to 8 bytes fit the L1 cache, and a row of one is at least half a cache line.
constexpr std::int64_t kTile = 16;

template <class Word>
void transpose_words(const Word* from, std::int64_t row_stride, std::int64_t rows, std::int64_t cols, Word* to) {
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const std::int64_t r1 = std::min(r0 + kTile, rows);
    for (std::int64_t c0 = 0; c0 < cols; c0 += kTile) {
      const std::int64_t c1 = std::min(c0 + kTile, cols);
      for (std::int64_t c = c0; c < c1; ++c) {
        for (std::int64_t r = r0; r < r1; ++r) to[c * rows + r] = from[r * row_stride + c];
      }
    }
  }
}

}  // namespace

Tensor transpose(TensorView matrix) {
  check(matrix.shape().rank() == 2, "transpose of a tensor that is no matrix");
  const std::int64_t rows = matrix.shape()[0];
  const std::int64_t cols = matrix.shape()[1];
  Tensor transposed = Tensor::empty(matrix.dtype(), {cols, rows});
  const auto run = [&](auto word) {
    using Word = decltype(word);
    transpose_words(static_cast<const Word*>(matrix.data()), matrix.row_stride(), rows, cols,
                    static_cast<Word*>(transposed.mutable_view().data()));
  };
  switch (size_bytes(matrix.dtype())) {
    case 1: run(std::uint8_t{}); break;
    case 2: run(std::uint16_t{}); break;
    case 4: run(std::uint32_t{}); break;
    default: run(std::uint64_t{}); break;
  }
  return transposed;
}

}  // namespace nibble::formats
