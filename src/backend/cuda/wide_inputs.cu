#include "backend/cuda/wide_inputs.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <string>

#include "backend/cuda/handles.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_layout.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread a segment of 32 columns in natural order, whose rows are aligned to 16 bytes: 64 bytes in, 64 bytes out.
/// Word w of lane t's 16 bytes (columns 8t + 2w, 8t + 2w + 1) belongs to product w / 2, where it is the pair 2t or,
/// for odd w, 2t + 8.
__global__ void __launch_bounds__(kThreads) arrange_segments_kernel(const uint4* x, InputShape shape, uint4* to) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t segments = shape.width / kSegmentCols;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= shape.num_tokens * segments) return;
  const std::int64_t token = index / segments;
  const std::int64_t first = index % segments * 4;  // of vectors in a row
  const std::int64_t vectors = shape.num_cols / 8;
  uint4 from[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    from[t] = first + t < vectors ? __ldg(x + token * vectors + first + t) : uint4{0, 0, 0, 0};
  }
  uint4* out = to + token * (shape.width / 8) + first;
  out[0] = uint4{from[0].x, from[1].x, from[2].x, from[3].x};
  out[1] = uint4{from[0].y, from[1].y, from[2].y, from[3].y};
  out[2] = uint4{from[0].z, from[1].z, from[2].z, from[3].z};
  out[3] = uint4{from[0].w, from[1].w, from[2].w, from[3].w};
}

/// The packed column that a product counts as its k, by the position in a row.
__device__ std::int64_t packed_column(std::int64_t position) {
  const auto k = static_cast<int>(position % 16);
  const auto product = static_cast<int>(position / 16 % 2);
  const LaneCode code{.segment = 0, .step = product, .half = 0, .col = k / 8 * 2 + k % 2};
  return position / kSegmentCols * kSegmentCols + column_of(code, k % 8 / 2);
}

/// A thread an element.
__global__ void __launch_bounds__(kThreads)
    arrange_elements_kernel(const __half* x, const std::int32_t* columns, InputShape shape, __half* to) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= shape.num_tokens * shape.width) return;
  const std::int64_t token = index / shape.width;
  const std::int64_t packed = packed_column(index % shape.width);
  const std::int64_t col = columns == nullptr ? packed : columns[packed];
  to[index] = col >= 0 && col < shape.num_cols ? x[token * shape.num_cols + col] : __half{0};
}

int blocks_of(std::int64_t count) {
  return static_cast<int>((count + kThreads - 1) / kThreads);
}

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

/// The driver's function: nothing links the driver itself.
EncodeTiled encode_tiled() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    nibble::check(function != nullptr && result == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

}  // namespace

void arrange_inputs(const void* x, const Tensor& columns, const InputShape& shape, void* to, cudaStream_t stream) {
  if (columns.is_empty() && shape.num_cols % 8 == 0) {
    launch_dependent(arrange_segments_kernel,
                     {.blocks = blocks_of(shape.num_tokens * shape.width / kSegmentCols), .threads = kThreads}, stream,
                     static_cast<const uint4*>(x), shape, static_cast<uint4*>(to));
    return;
  }
  const auto* order = columns.is_empty() ? nullptr : static_cast<const std::int32_t*>(columns.view().data());
  launch_dependent(arrange_elements_kernel, {.blocks = blocks_of(shape.num_tokens * shape.width), .threads = kThreads},
                   stream, static_cast<const __half*>(x), order, shape, static_cast<__half*>(to));
}

CUtensorMap map_inputs(const void* x, std::int64_t num_tokens, std::int64_t width, int box_cols, int box_tokens) {
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(num_tokens)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(width) * sizeof(__half)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_tokens)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status = encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(x), sizes, strides,
                                         box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::Internal, "CUDA: no tensor map of inputs (driver error " + std::to_string(status) + ")");
  }
  return map;
}

}  // namespace nibble::backend::cuda
