#include <cuda_fp16.h>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "backend/cuda/pack_weights.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_of(std::int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

__device__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

template <class T>
const T* device_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.view().data());
}

Tensor upload(const std::vector<std::int32_t>& values, cudaStream_t stream) {
  if (values.empty()) return {};
  return to_device({values.data(), DType::I32, {static_cast<std::int64_t>(values.size())}}, stream);
}

/// A thread a lane of a block.
template <int kBits, NibbleOrder kOrder>
__global__ void pack_codes_kernel(const std::uint8_t* codes, std::int64_t row_bytes, const std::int32_t* columns,
                                  PackedShape shape, std::byte* blocks) {
  const std::int64_t index = thread_index();
  if (index >= std::int64_t{shape.num_tiles} * shape.num_blocks * 32) return;
  const int lane = static_cast<int>(index % 32);
  const std::int64_t at = index / 32;
  const auto block = static_cast<int>(at % shape.num_blocks);
  const auto tile = static_cast<int>(at / shape.num_blocks);
  std::uint32_t words[lane_words(kBits)] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const LaneCode place{i / 16, i / 8 % 2, i / 4 % 2, i % 4};
    const int row = tile * kTileRows + lane / 4 + 8 * place.half;
    int col = block * kBlockCols + column_of(place, lane % 4);
    if (columns != nullptr) col = columns[col];
    if (row >= shape.num_rows || col < 0 || col >= shape.num_cols) continue;
    const int bit = col * kBits;
    const std::uint8_t* from = codes + row * row_bytes + bit / 8;
    std::uint32_t code = from[0];
    if (bit % 8 + kBits > 8) code |= std::uint32_t{from[1]} << 8;
    code >>= bit % 8;
#pragma unroll
    for (int b = 0; b < kBits; ++b) {
      const BitPlace to = bit_place(kBits, kOrder, place, b);
      words[to.word] |= ((code >> b) & 1U) << to.bit;
    }
  }
#pragma unroll
  for (int w = 0; w < lane_words(kBits); ++w) {
    *reinterpret_cast<std::uint32_t*>(blocks + at * shape.block_bytes + word_offset(kBits, lane, w)) = words[w];
  }
}

template <int kBits, NibbleOrder kOrder>
void launch_pack_codes(const Tensor& codes, const PackedShape& shape, const Tensor& columns, void* blocks,
                       cudaStream_t stream) {
  const std::int64_t lanes = std::int64_t{shape.num_tiles} * shape.num_blocks * 32;
  pack_codes_kernel<kBits, kOrder><<<blocks_of(lanes), kThreads, 0, stream>>>(
      device_pointer<std::uint8_t>(codes), codes.shape()[1], device_pointer<std::int32_t>(columns), shape,
      static_cast<std::byte*>(blocks));
}

/// A thread a group of a block and a pair of rows.
template <class Scale>
__global__ void pack_groups_kernel(const Scale* scales, const std::int16_t* zeros, std::int64_t num_groups,
                                   const std::int32_t* groups, int groups_per_block, int codes_bytes, PackedShape shape,
                                   std::byte* blocks) {
  const std::int64_t index = thread_index();
  if (index >= std::int64_t{shape.num_tiles} * shape.num_blocks * groups_per_block * 8) return;
  const int g = static_cast<int>(index % 8);
  const int local = static_cast<int>(index / 8 % groups_per_block);
  const std::int64_t at = index / 8 / groups_per_block;
  const auto block = static_cast<int>(at % shape.num_blocks);
  const auto tile = static_cast<int>(at / shape.num_blocks);
  const std::int32_t group = groups[block * groups_per_block + local];
  Scale scale[2] = {static_cast<Scale>(0), static_cast<Scale>(0)};
  __half zero[2] = {0, 0};
  for (int half = 0; half < 2; ++half) {
    const int row = tile * kTileRows + g + 8 * half;
    if (row >= shape.num_rows || group < 0) continue;
    scale[half] = scales[row * num_groups + group];
    zero[half] = __int2half_rn(zeros[row * num_groups + group]);
  }
  constexpr int kBytes = sizeof(Scale) == 4 ? 16 : 8;
  std::byte* to = blocks + at * shape.block_bytes + codes_bytes + (local * 8 + g) * kBytes;
  reinterpret_cast<Scale*>(to)[0] = scale[0];
  reinterpret_cast<Scale*>(to)[1] = scale[1];
  auto* zero_to = reinterpret_cast<__half*>(to + 2 * sizeof(Scale));
  zero_to[0] = zero[0];
  zero_to[1] = zero[1];
  if (sizeof(Scale) == 4) reinterpret_cast<std::uint32_t*>(to)[3] = 0;
}

template <class Scale>
void launch_pack_groups(const GroupSource& source, std::int32_t bits, const PackedShape& shape, const Tensor& groups,
                        void* blocks, cudaStream_t stream) {
  const int per_block = kSegments / source.segments_per_group;
  const std::int64_t threads = std::int64_t{shape.num_tiles} * shape.num_blocks * per_block * 8;
  pack_groups_kernel<<<blocks_of(threads), kThreads, 0, stream>>>(
      device_pointer<Scale>(source.scales), device_pointer<std::int16_t>(source.zeros), source.scales.shape()[1],
      device_pointer<std::int32_t>(groups), per_block, code_bytes(bits), shape, static_cast<std::byte*>(blocks));
}

__global__ void pack_tables_kernel(const std::uint16_t* tables, int entries, PackedShape shape, std::uint8_t* planes) {
  const std::int64_t index = thread_index();
  if (index >= std::int64_t{shape.num_tiles} * kTileRows * entries) return;
  const std::int64_t row = index / entries;
  const std::int64_t entry = index % entries;
  const std::uint16_t value = row < shape.num_rows ? tables[index] : 0;
  planes[row * 2 * entries + entry] = static_cast<std::uint8_t>(value & 0xff);
  planes[row * 2 * entries + entries + entry] = static_cast<std::uint8_t>(value >> 8);
}

__global__ void gather_columns_kernel(const __half* x, const std::int32_t* columns, GatherShape shape, __half* to) {
  const std::int64_t index = thread_index();
  if (index >= shape.num_tokens * shape.width) return;
  const std::int64_t token = index / shape.width;
  const std::int64_t i = index % shape.width;
  const std::int64_t col = columns == nullptr ? i : columns[i];
  to[index] = col >= 0 && col < shape.num_cols ? x[token * shape.num_cols + col] : __half{0};
}

}  // namespace

DeviceColumns::DeviceColumns(const ColumnPlan& plan, cudaStream_t stream)
    : columns(upload(plan.columns, stream)), groups(upload(plan.groups, stream)) {}

PackedShape packed_shape(std::int64_t num_rows, std::int64_t num_cols, std::int32_t num_blocks,
                         std::int32_t block_bytes) {
  PackedShape shape;
  shape.num_rows = static_cast<std::int32_t>(num_rows);
  shape.num_cols = static_cast<std::int32_t>(num_cols);
  shape.num_tiles = static_cast<std::int32_t>((num_rows + 2 * kTileRows - 1) / (2 * kTileRows) * 2);
  shape.num_blocks = num_blocks;
  shape.block_bytes = block_bytes;
  return shape;
}

void pack_codes(const Tensor& codes, std::int32_t bits, NibbleOrder order, const PackedShape& shape,
                const Tensor& columns, void* blocks, cudaStream_t stream) {
  if (order == NibbleOrder::Rows) {
    nibble::check(bits == 3 || bits == 4, "codebooks are of 3 or 4 bits");
    if (bits == 3) launch_pack_codes<3, NibbleOrder::Rows>(codes, shape, columns, blocks, stream);
    if (bits == 4) launch_pack_codes<4, NibbleOrder::Rows>(codes, shape, columns, blocks, stream);
  } else {
    nibble::check(bits == 2 || bits == 3 || bits == 4 || bits == 8, "integers are of 2, 3, 4 or 8 bits");
    if (bits == 2) launch_pack_codes<2, NibbleOrder::Pairs>(codes, shape, columns, blocks, stream);
    if (bits == 3) launch_pack_codes<3, NibbleOrder::Pairs>(codes, shape, columns, blocks, stream);
    if (bits == 4) launch_pack_codes<4, NibbleOrder::Pairs>(codes, shape, columns, blocks, stream);
    if (bits == 8) launch_pack_codes<8, NibbleOrder::Pairs>(codes, shape, columns, blocks, stream);
  }
  check(cudaGetLastError());
}

void pack_groups(const GroupSource& source, std::int32_t bits, const PackedShape& shape, const Tensor& groups,
                 void* blocks, cudaStream_t stream) {
  if (source.scales.dtype() == DType::F32) {
    launch_pack_groups<float>(source, bits, shape, groups, blocks, stream);
  } else {
    nibble::check(source.scales.dtype() == DType::F16, "scales on the device are f16 or f32");
    launch_pack_groups<__half>(source, bits, shape, groups, blocks, stream);
  }
  check(cudaGetLastError());
}

std::int32_t block_bytes_with_groups(std::int32_t bits, std::int32_t segments_per_group, bool has_float_scales) {
  return code_bytes(bits) + kSegments / segments_per_group * 8 * (has_float_scales ? 16 : 8);
}

void pack_tables(const Tensor& tables, std::int32_t bits, const PackedShape& shape, void* planes, cudaStream_t stream) {
  nibble::check(tables.dtype() == DType::F16, "tables on the device are f16");
  const int entries = 1 << bits;
  pack_tables_kernel<<<blocks_of(std::int64_t{shape.num_tiles} * kTileRows * entries), kThreads, 0, stream>>>(
      device_pointer<std::uint16_t>(tables), entries, shape, static_cast<std::uint8_t*>(planes));
  check(cudaGetLastError());
}

void gather_columns(const void* x, const Tensor& columns, const GatherShape& shape, void* to, cudaStream_t stream) {
  gather_columns_kernel<<<blocks_of(shape.num_tokens * shape.width), kThreads, 0, stream>>>(
      static_cast<const __half*>(x), device_pointer<std::int32_t>(columns), shape, static_cast<__half*>(to));
  check(cudaGetLastError());
}

}  // namespace nibble::backend::cuda
