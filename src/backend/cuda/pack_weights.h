#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/column_plan.h"
#include "backend/cuda/packed_layout.h"
#include "core/tensor.h"

/// From the canonical forms to the layouts of streaming kernels and back to rows, on the device.
namespace nibble::backend::cuda {

/// A plan's arrays on the device.
struct DeviceColumns {
  DeviceColumns(const ColumnPlan& plan, cudaStream_t stream);
  Tensor columns;  // i32 [num_blocks * 128], empty in the natural order
  Tensor groups;   // i32 [num_blocks * 4 / segments_per_group], empty without groups
};

/// A packed matrix: u8 [num_tiles, num_blocks, block_bytes], of which there is an even number of row tiles.
struct PackedShape {
  std::int32_t num_rows = 0;
  std::int32_t num_cols = 0;
  std::int32_t num_tiles = 0;
  std::int32_t num_blocks = 0;
  std::int32_t block_bytes = 0;

  std::int64_t size_bytes() const { return std::int64_t{num_tiles} * num_blocks * block_bytes; }
};
PackedShape packed_shape(std::int64_t num_rows, std::int64_t num_cols, std::int32_t num_blocks,
                         std::int32_t block_bytes);

/// Writes a stream of codes (u8 [num_rows, row_bytes] on the device) into blocks; codes beyond rows and columns are 0.
void pack_codes(const Tensor& codes, std::int32_t bits, NibbleOrder order, const PackedShape& shape,
                const Tensor& columns, void* blocks, cudaStream_t stream);

/// Writes scales (f16, or f32 for has_float_scales; [num_rows, num_groups]) and zeros (i16) behind the blocks' codes.
/// Absent groups get scale 0.
struct GroupSource {
  const Tensor& scales;
  const Tensor& zeros;
  std::int32_t segments_per_group = 4;
};
void pack_groups(const GroupSource& source, std::int32_t bits, const PackedShape& shape, const Tensor& groups,
                 void* blocks, cudaStream_t stream);

/// Bytes of a block with its groups.
std::int32_t block_bytes_with_groups(std::int32_t bits, std::int32_t segments_per_group, bool has_float_scales);

/// f16 tables [num_rows, 2^bits] as planes of bytes for each row tile: u8 [num_tiles, 16, 2 * 2^bits].
void pack_tables(const Tensor& tables, std::int32_t bits, const PackedShape& shape, void* planes, cudaStream_t stream);

/// to[t, i] = x[t, columns[i]] in f16, 0 for none or beyond the last column; columns may be empty, then i is the
/// column. x [num_tokens, num_cols], to [num_tokens, width].
struct GatherShape {
  std::int64_t num_tokens = 0;
  std::int64_t num_cols = 0;
  std::int64_t width = 0;
};
void gather_columns(const void* x, const Tensor& columns, const GatherShape& shape, void* to, cudaStream_t stream);

}  // namespace nibble::backend::cuda
