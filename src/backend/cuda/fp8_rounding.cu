// Regime: once a linear while a float checkpoint loads. In: rows as the checkpoint has them. Out: E4M3 codes in the
// same order, f32 scales. Moves 3 or 5 bytes a weight twice (largest magnitude, then codes); the copy to the device
// that comes before takes some fifty times as long, so the loops are plain.

#include "backend/cuda/fp8_rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <variant>

#include "backend/cuda/device.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMeasureBlocks = 1024;
constexpr int kBlockSize = static_cast<int>(weights::kFp8BlockSize);

/// Bits of the largest magnitude: as integers, magnitudes sort like floats, infinity and NaN above all numbers.
__device__ std::uint32_t magnitude(float value) {
  return __float_as_uint(value) & 0x7fffffffu;
}

/// weights::fp8_scale, with the same roundings.
__device__ float scale_of(std::uint32_t largest) {
  const float scale = __fdiv_rn(__uint_as_float(largest), weights::kFp8Largest);
  return scale > 0 ? scale : 1.0f;
}

/// Round half to even after clamping to ±448, as fp8_e4m3_bits.
__device__ std::uint8_t code_of(float value, float scale) {
  return __nv_cvt_float_to_fp8(__fdiv_rn(value, scale), __NV_SATFINITE, __NV_E4M3);
}

/// The block's largest value, for all its threads.
__device__ std::uint32_t block_max(std::uint32_t value) {
  __shared__ std::uint32_t of_warp[kThreads / kWarpSize];
  value = __reduce_max_sync(0xffffffff, value);
  __syncthreads();  // of an earlier call's readers
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  std::uint32_t largest = 0;
  for (const std::uint32_t one : of_warp) largest = max(largest, one);
  return largest;
}

/// *largest = max(*largest, magnitudes of the matrix). A maximum of integers: the order does not matter.
template <class T>
__global__ void measure_kernel(const T* weights, std::int64_t count, std::uint32_t* largest) {
  std::uint32_t mine = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    mine = max(mine, magnitude(static_cast<float>(weights[i])));
  }
  mine = block_max(mine);
  if (threadIdx.x == 0) atomicMax(largest, mine);
}

/// All weights by the scale of `shared_largest`.
template <class T>
__global__ void round_kernel(const T* weights, std::int64_t count, const std::uint32_t* shared_largest,
                             std::uint8_t* codes) {
  const float scale = scale_of(*shared_largest);
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    codes[i] = code_of(static_cast<float>(weights[i]), scale);
  }
}

/// A block of threads rounds a tile of `tile_rows` x `tile_cols` weights by the tile's own largest.
///
/// weights, codes [out, in]; scale [gridDim.y, gridDim.x], a tile each
template <class T>
__global__ void round_tile_kernel(const T* weights, std::int64_t out, std::int64_t in, std::int64_t tile_rows,
                                  std::int64_t tile_cols, std::uint32_t* largest, float* scale, std::uint8_t* codes) {
  const std::int64_t row_end = min(out, (std::int64_t{blockIdx.y} + 1) * tile_rows);
  const std::int64_t col_end = min(in, (std::int64_t{blockIdx.x} + 1) * tile_cols);
  const std::int64_t first_col = blockIdx.x * tile_cols + threadIdx.x;
  std::uint32_t mine = 0;
  for (std::int64_t o = blockIdx.y * tile_rows; o < row_end; ++o) {
    for (std::int64_t i = first_col; i < col_end; i += kThreads) {
      mine = max(mine, magnitude(static_cast<float>(weights[o * in + i])));
    }
  }
  mine = block_max(mine);
  const float tile_scale = scale_of(mine);
  for (std::int64_t o = blockIdx.y * tile_rows; o < row_end; ++o) {
    for (std::int64_t i = first_col; i < col_end; i += kThreads) {
      codes[o * in + i] = code_of(static_cast<float>(weights[o * in + i]), tile_scale);
    }
  }
  if (threadIdx.x != 0) return;
  scale[std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = tile_scale;
  atomicMax(largest, mine);
}

/// Blocks of the grid's second dimension are limited; a tile of whole rows is one.
constexpr std::int64_t kMaxTileRows = 65'535;

/// One call: what all parts share.
class Fp8Rounding {
 public:
  explicit Fp8Rounding(cudaStream_t stream) : largest_(device_buffer(sizeof(std::uint32_t))), stream_(stream) {
    check(cudaMemsetAsync(largest_.data(), 0, largest_.size_bytes(), stream_));
  }

  void measure(const Tensor& part) {
    with_dtype(part.dtype(), "fp8", [&](auto element) {
      measure_kernel<<<kMeasureBlocks, kThreads, 0, stream_>>>(data<decltype(element)>(part), part.num_elements(),
                                                               largest());
    });
    check(cudaGetLastError());
  }

  /// After `measure` of all parts.
  weights::Fp8Weights round_by_shared_scale(const Tensor& part) {
    weights::Fp8Weights rounded = allocate(part);
    with_dtype(part.dtype(), "fp8", [&](auto element) {
      round_kernel<<<kMeasureBlocks, kThreads, 0, stream_>>>(data<decltype(element)>(part), part.num_elements(),
                                                             largest(), codes(rounded));
    });
    check(cudaGetLastError());
    rounded.scale = Tensor::empty(DType::F32, {1});
    rounded.scale.span<float>()[0] = weights::fp8_scale(std::bit_cast<float>(read_largest()));
    return rounded;
  }

  weights::Fp8Weights round_tiles(const Tensor& part, std::int64_t tile_rows, std::int64_t tile_cols, Shape scales) {
    weights::Fp8Weights rounded = allocate(part);
    Tensor scale(device_buffer(static_cast<std::size_t>(scales.num_elements()) * sizeof(float)), DType::F32, scales);
    const std::int64_t in = part.shape()[1];
    const std::int64_t out = part.shape()[0];
    const auto tiles_across = static_cast<unsigned>((in + tile_cols - 1) / tile_cols);
    const std::int64_t rows_a_launch = kMaxTileRows * tile_rows;
    for (std::int64_t first = 0; first < out; first += rows_a_launch) {
      const std::int64_t rows = std::min(rows_a_launch, out - first);
      const dim3 grid(tiles_across, static_cast<unsigned>((rows + tile_rows - 1) / tile_rows));
      with_dtype(part.dtype(), "fp8", [&](auto element) {
        round_tile_kernel<<<grid, kThreads, 0, stream_>>>(
            data<decltype(element)>(part) + first * in, rows, in, tile_rows, tile_cols, largest(),
            static_cast<float*>(scale.mutable_view().data()) + first / tile_rows * tiles_across,
            codes(rounded) + first * in);
      });
      check(cudaGetLastError());
    }
    rounded.scale = to_host(scale, stream_);
    return rounded;
  }

  /// Errors: Corrupt.
  void expect_finite() const {
    if (read_largest() < std::bit_cast<std::uint32_t>(INFINITY)) return;
    throw Error(ErrorCode::Corrupt, "weight holds NaN or infinity");
  }

 private:
  template <class T>
  static const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.view().data());
  }
  static std::uint8_t* codes(weights::Fp8Weights& rounded) {
    return static_cast<std::uint8_t*>(rounded.weight.mutable_view().data());
  }
  static weights::Fp8Weights allocate(const Tensor& part) {
    weights::Fp8Weights rounded;
    rounded.weight = Tensor(device_buffer(static_cast<std::size_t>(part.num_elements())), DType::F8E4M3, part.shape());
    return rounded;
  }
  std::uint32_t* largest() { return static_cast<std::uint32_t*>(largest_.data()); }
  std::uint32_t read_largest() const {
    std::uint32_t value = 0;
    check(cudaMemcpyAsync(&value, largest_.data(), sizeof(value), cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return value;
  }

  Buffer largest_;  // u32: bits of the largest magnitude so far
  cudaStream_t stream_;
};

std::vector<weights::Fp8Weights> round_with_shared_scale(std::span<const TensorView> parts, Uploader& uploader) {
  Fp8Rounding rounding(uploader.stream());
  std::vector<Tensor> floats;
  for (const TensorView& part : parts) {
    floats.push_back(uploader.upload(part));
    rounding.measure(floats.back());
  }
  rounding.expect_finite();
  std::vector<weights::Fp8Weights> rounded;
  for (Tensor& part : floats) {
    rounded.push_back(rounding.round_by_shared_scale(part));
    part = {};
  }
  return rounded;
}

}  // namespace

std::vector<weights::Fp8Weights> quantize_fp8(std::span<const TensorView> parts, weights::Fp8Granularity granularity,
                                              Uploader& uploader) {
  if (granularity == weights::Fp8Granularity::PerTensor) return round_with_shared_scale(parts, uploader);
  Fp8Rounding rounding(uploader.stream());
  std::vector<weights::Fp8Weights> rounded;
  for (const TensorView& part : parts) {
    const Tensor floats = uploader.upload(part);
    const std::int64_t out = part.shape()[0];
    const std::int64_t in = part.shape()[1];
    if (granularity == weights::Fp8Granularity::PerChannel) {
      rounded.push_back(rounding.round_tiles(floats, 1, in, {out}));
    } else {
      rounded.push_back(rounding.round_tiles(
          floats, kBlockSize, kBlockSize, {(out + kBlockSize - 1) / kBlockSize, (in + kBlockSize - 1) / kBlockSize}));
      rounded.back().block_size = kBlockSize;
    }
  }
  rounding.expect_finite();
  return rounded;
}

void quantize_parts_to_fp8(std::span<weights::LinearPart> parts, weights::Fp8Granularity granularity,
                           Uploader& uploader) {
  std::vector<TensorView> views;
  for (const weights::LinearPart& part : parts) {
    if (const auto* dense = std::get_if<weights::DenseWeights>(&part.weights)) views.emplace_back(dense->weight);
  }
  std::vector<weights::Fp8Weights> rounded = quantize_fp8(views, granularity, uploader);
  auto next = rounded.begin();
  for (weights::LinearPart& part : parts) {
    if (std::holds_alternative<weights::DenseWeights>(part.weights)) part.weights = std::move(*next++);
  }
}

}  // namespace nibble::backend::cuda
