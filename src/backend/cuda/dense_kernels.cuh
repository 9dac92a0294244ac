#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device_part.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/pack_weights.h"
#include "backend/cuda/weight_codecs.cuh"

/// Packed weights written out as rows, for cuBLASLt: bound by writing them.
namespace nibble::backend::cuda {

inline constexpr int kDenseWarps = 8;  // of a block of threads

/// Eight consecutive elements of a row.
template <class To>
__device__ void store_eight(To* to, const float (&values)[8]) {
  Vector<To> vectors[8 / Vector<To>::kSize];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    vectors[i / Vector<To>::kSize].values[i % Vector<To>::kSize] = static_cast<To>(values[i]);
  }
#pragma unroll
  for (int v = 0; v < 8 / Vector<To>::kSize; ++v) reinterpret_cast<Vector<To>*>(to)[v] = vectors[v];
}

/// to[row - rows.first, col…] = values, where packed columns from `col` stand for `columns`.
template <class To>
__device__ void store_columns(To* to, const PackedShape& shape, const RowRange& rows, const std::int32_t* columns,
                              int row, int col, const float (&values)[8]) {
  if (row >= rows.first + rows.count) return;
  To* row_to = to + (row - rows.first) * shape.num_cols;
  if (columns == nullptr && shape.num_cols % 8 == 0) {
    if (col < shape.num_cols) store_eight(row_to + col, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int at = columns == nullptr ? col + i : columns[col + i];
    if (at >= 0 && at < shape.num_cols) row_to[at] = static_cast<To>(values[i]);
  }
}

/// A warp a block of packed weights. `decode(tile, block, segment, half, lane, values)` gives the lane's eight columns
/// of row g + 8 half.
template <class Decode, class To>
__global__ void __launch_bounds__(kDenseWarps* kWarpSize)
    dense_kernel(const Decode decode, const PackedShape shape, const RowRange rows, const std::int32_t* columns,
                 To* to) {
  const std::int64_t index = rows.first / kTileRows * shape.num_blocks +
                             static_cast<std::int64_t>(blockIdx.x) * kDenseWarps + threadIdx.x / kWarpSize;
  if (index >= std::int64_t{shape.num_tiles} * shape.num_blocks) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto block = static_cast<int>(index % shape.num_blocks);
  const auto tile = static_cast<int>(index / shape.num_blocks);
  typename Decode::Words words;
  decode.load(tile, block, lane, words);
#pragma unroll
  for (int segment = 0; segment < kSegments; ++segment) {
    float values[2][8];
    decode(words, tile, block, segment, lane, values);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_columns(to, shape, rows, columns, tile * kTileRows + lane / 4 + 8 * half,
                    block * kBlockCols + kSegmentCols * segment + 8 * (lane % 4), values[half]);
    }
  }
}

template <class Decode, class To>
void write_dense(const Decode& decode, const PackedShape& shape, const RowRange& rows, const std::int32_t* columns,
                 To* to, cudaStream_t stream) {
  const std::int64_t warps = (rows.count + kTileRows - 1) / kTileRows * shape.num_blocks;
  dense_kernel<<<static_cast<unsigned>((warps + kDenseWarps - 1) / kDenseWarps), kDenseWarps * kWarpSize, 0, stream>>>(
      decode, shape, rows, columns, to);
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
