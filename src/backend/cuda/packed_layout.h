#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif

/// Where a code stands in packed weights, which are blocks of 16 rows × 128 columns; the blocks of a row tile follow
/// one another along the columns. A warp multiplies a block by eight `mma.m16n8k16`, and each lane finds in its own
/// words just the codes of its own A fragments.
///
/// Of a block, lane (g, t) = (lane / 4, lane % 4) owns rows g and g + 8 and, in each of four segments of 32 columns,
/// the eight columns from 8t: so its B fragments are eight consecutive inputs too. A segment is two products; in
/// product `step` the columns 4 step … 4 step + 3 of a lane's eight stand where the instruction counts k as 2t, 2t + 1,
/// 2t + 8, 2t + 9: any order of k is right if A and B agree.
namespace nibble::backend::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kBlockCols = 128;
inline constexpr int kSegmentCols = 32;
inline constexpr int kSegments = kBlockCols / kSegmentCols;

/// A code among a lane's 64 of a block: column 32 segment + 8 t + 4 step + col of row g + 8 half.
struct LaneCode {
  int segment;
  int step;  // 0, 1
  int half;  // 0, 1
  int col;   // 0 … 3
};

/// The column of a block where a code of lane (g, t) stands: the one place that knows the order of columns.
NIBBLE_HOST_DEVICE constexpr int column_of(const LaneCode& code, int t) {
  return kSegmentCols * code.segment + 8 * t + 4 * code.step + code.col;
}

/// A bit of a lane's words.
struct BitPlace {
  int word;
  int bit;
};

/// The nibble of a product's eight codes in a word. Integers: by pairs (col 0, 1 | col 2, 3) that lie 16 bits apart, so
/// that one mask makes two halves. Codebooks: by rows, since a byte permutation looks up four codes of one table.
enum class NibbleOrder : std::uint8_t { Pairs, Rows };

NIBBLE_HOST_DEVICE constexpr int nibble_of(NibbleOrder order, const LaneCode& code) {
  if (order == NibbleOrder::Rows) return 4 * code.half + code.col;
  return code.half + 2 * (code.col / 2) + 4 * (code.col % 2);
}

/// Words of a lane in a block.
NIBBLE_HOST_DEVICE constexpr int lane_words(int bits) {
  return 2 * bits;
}

/// Bit `b` of a code of 2, 3, 4 or 8 bits.
///
/// 4 bits: a word a product. 2 bits: a word a segment, the low half of a nibble for the first product. 3 bits: three
/// words for four products, the fourth in the nibbles' spare high bits. 8 bits: two words a product, one a row.
NIBBLE_HOST_DEVICE constexpr BitPlace bit_place(int bits, NibbleOrder order, const LaneCode& code, int b) {
  const int product = 2 * code.segment + code.step;
  const int nibble = 4 * nibble_of(order, code);
  if (bits == 2) return {code.segment, nibble + 2 * code.step + b};
  if (bits == 3 && product % 4 < 3) return {3 * (product / 4) + product % 4, nibble + b};
  if (bits == 3) return {3 * (product / 4) + b, nibble + 3};
  if (bits == 8) return {2 * product + code.half, 8 * code.col + b};
  return {product, nibble + b};
}

/// Byte of a lane's word in a block: lanes side by side, in vectors of 16 bytes (3 bits: of 8), as shared memory likes.
NIBBLE_HOST_DEVICE constexpr int word_offset(int bits, int lane, int word) {
  const int vector = bits == 3 ? 2 : 4;
  return (word / vector * 32 + lane) * vector * 4 + word % vector * 4;
}

NIBBLE_HOST_DEVICE constexpr int code_bytes(int bits) {
  return kTileRows * kBlockCols * bits / 8;
}

}  // namespace nibble::backend::cuda
