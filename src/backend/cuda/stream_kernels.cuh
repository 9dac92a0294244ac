#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/tensor_core.cuh"
#include "backend/cuda/weight_codecs.cuh"
#include "core/error.h"

/// y = W x for up to 16 tokens, bound by reading W once: the weights are the A operand of tensor-core products, tokens
/// the eight columns of B, so that one token costs as much as eight.
///
/// A block of threads owns row tiles, one after the other, with all their columns; its warps share the columns, and
/// each keeps copies of its next blocks of weights under way in its own ring of stages, across row tiles too. So
/// nothing waits for a neighbour but the sum over warps at the end of a row tile, which runs in the order of warps:
/// results are the same in every run. Inputs come from L1 and L2, where they stay. Ceiling: a kernel that only reads W.
namespace nibble::backend::cuda {

inline constexpr std::int64_t kMaxStreamedTokens = 16;
inline constexpr int kMaxStreamWarps = 16;

/// How a product is spread over the device.
struct StreamConfig {
  int row_tiles = 1;  // of 16 rows, a block's: 1 or 2
  int warps = 8;      // of a block, that share the columns
  int blocks_per_multiprocessor = 2;
};

/// The kernel's view of a product.
struct StreamProduct {
  const __half* x = nullptr;  // [num_tokens, x_stride], rows aligned to 16 bytes
  std::int64_t x_stride = 0;
  std::int32_t num_tokens = 0;
  std::int32_t num_cols = 0;  // of x: a multiple of 8
  void* y = nullptr;          // [num_tokens, y_stride], f16 or f32
  std::int64_t y_stride = 0;
  bool has_float_y = false;
  std::int32_t num_rows = 0;    // of W
  std::int32_t num_blocks = 0;  // of 128 columns
};

/// Where a lane finds its inputs as B fragments: of token 8 i + g its eight columns of each segment. Lanes beyond the
/// tokens read the last one's, for columns of the product that nobody stores.
template <class Codec, int kTokenTiles>
class InputFragments {
 public:
  using Fragments = uint4[kTokenTiles][kSegments];

  /// Of blocks [first_block, end_block), again and again.
  __device__ InputFragments(const StreamProduct& p, int first_block, int end_block, int lane)
      : num_blocks_(end_block - first_block), left_(num_blocks_) {
    const int first = kBlockCols * first_block + Codec::lane_column(lane % 4);
    num_cols_ = p.num_cols - first;
    // The last block of all columns may be narrower.
    is_ragged_ = end_block * kBlockCols > p.num_cols;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      rows_[i] = p.x + min(8 * i + lane / 4, p.num_tokens - 1) * p.x_stride + first;
    }
  }

  /// The next block's.
  __device__ void load_next(Fragments& b) {
    if (is_ragged_ && left_ == 1) {
      load_ragged(b);
    } else {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int s = 0; s < kSegments; ++s) {
          b[i][s] = *reinterpret_cast<const uint4*>(rows_[i] + Codec::segment_column(s));
        }
      }
    }
    --left_;
    const int step = left_ == 0 ? kBlockCols * (1 - num_blocks_) : kBlockCols;
    if (left_ == 0) left_ = num_blocks_;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) rows_[i] += step;
  }

 private:
  __device__ void load_ragged(Fragments& b) const {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int s = 0; s < kSegments; ++s) {
        const bool is_there = kBlockCols * (num_blocks_ - 1) + Codec::segment_column(s) < num_cols_;
        b[i][s] = is_there ? *reinterpret_cast<const uint4*>(rows_[i] + Codec::segment_column(s)) : uint4{0, 0, 0, 0};
      }
    }
  }

  const __half* rows_[kTokenTiles];
  int num_blocks_;
  int left_;      // blocks to the end
  int num_cols_;  // behind the lane's first
  bool is_ragged_;
};

/// sums += block × inputs.
template <class Codec, int kTokenTiles>
__device__ void multiply_block(const Codec& codec, const typename Codec::Tables& tables, const std::byte* stage,
                               int lane, int tile, int block, const uint4 (&b)[kTokenTiles][kSegments],
                               float (&sums)[kTokenTiles][4]) {
  std::uint32_t words[Codec::kWords];
  codec.load(stage, lane, words);
  GroupGrid grid;
  float group_sums[kTokenTiles][4];
#pragma unroll
  for (int segment = 0; segment < kSegments; ++segment) {
    if (Codec::kScalesGroups && codec.starts_group(segment)) {
      grid = codec.grid(stage, segment, lane, tile, block);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) group_sums[i][c] = 0;
      }
    }
    Fragments a;
    codec.fragments(words, segment, grid, tables, a);
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      auto& to = Codec::kScalesGroups ? group_sums[i] : sums[i];
      multiply_add(to, a[0], b[i][segment].x, b[i][segment].y);
      multiply_add(to, a[1], b[i][segment].z, b[i][segment].w);
    }
    if (Codec::kScalesGroups && (segment == kSegments - 1 || codec.starts_group(segment + 1))) {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i][c] = fmaf(grid.scale[c / 2], group_sums[i][c], sums[i][c]);
      }
    }
  }
}

/// Sums of one warp over its columns, [tokens, rows] with rows padded against bank conflicts.
template <int kRowTiles, int kTokenTiles>
struct PartialSums {
  static constexpr int kRows = kTileRows * kRowTiles;
  static constexpr int kTokens = 8 * kTokenTiles;
  float values[kTokens][kRows + 4];
};

/// Σ of a row's outliers for every token, a quad a row, in the order of columns four by four.
template <int kRowTiles, int kTokenTiles>
__device__ void multiply_outliers(const Outliers& outliers, const StreamProduct& p, int tile, int warp, int lane,
                                  PartialSums<kRowTiles, kTokenTiles>& to) {
  constexpr int kTokens = 8 * kTokenTiles;
  const int local_row = 8 * warp + lane / 4;
  const int row = tile * kTileRows + local_row;
  float sums[kTokens] = {};
  if (row < p.num_rows) {
    const int last = __ldg(outliers.rows + row + 1);
    for (int j = __ldg(outliers.rows + row) + lane % 4; j < last; j += 4) {
      const float value = __ldg(outliers.vals + j);
      const __half* x = p.x + __ldg(outliers.cols + j);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t < p.num_tokens) sums[t] = fmaf(value, __half2float(x[t * p.x_stride]), sums[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    sums[t] += __shfl_xor_sync(0xffffffff, sums[t], 1);
    sums[t] += __shfl_xor_sync(0xffffffff, sums[t], 2);
    if (lane % 4 == 0) to.values[t][local_row] = sums[t];
  }
}

/// y of a row tile: the warps' sums in order. `first_thread` takes the first sum.
template <class Codec, int kRowTiles, int kTokenTiles>
__device__ void store_sums(const Codec& codec, const StreamProduct& p, int tile, int num_partials, int first_thread,
                           const PartialSums<kRowTiles, kTokenTiles>* partials) {
  constexpr int kRows = kTileRows * kRowTiles;
  int i = static_cast<int>(threadIdx.x) - first_thread;
  if (i < 0) i += static_cast<int>(blockDim.x);
  for (; i < kRows * p.num_tokens; i += static_cast<int>(blockDim.x)) {
    const int row = tile * kTileRows + i % kRows;
    if (row >= p.num_rows) continue;
    const int token = i / kRows;
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < num_partials; ++w) sum += partials[w].values[token][i % kRows];
    sum *= codec.row_scale(row);
    const std::int64_t at = token * p.y_stride + row;
    if (p.has_float_y) {
      static_cast<float*>(p.y)[at] = sum;
    } else {
      static_cast<__half*>(p.y)[at] = __float2half_rn(sum);
    }
  }
}

/// The blocks that a warp multiplies: the same columns of every tile_step-th group of row tiles.
struct WeightRange {
  int first_block;
  int end_block;
  int first_tile;
  int end_tile;
  int tile_step;
};

/// A warp's stages, and where the next copy comes from.
template <class Codec, int kRowTiles, int kStages>
class WeightRing {
 public:
  __device__ WeightRing(const Codec& codec, std::byte* stages, const WeightRange& range, int lane)
      : codec_(codec),
        stages_(stages),
        stage_(stages),
        stage_bytes_(kRowTiles * codec.stage_bytes()),
        range_(range),
        tile_(range.first_block < range.end_block ? range.first_tile : range.end_tile),
        left_(range.end_block - range.first_block),
        lane_(lane) {
    if (tile_ < range_.end_tile) codec_.move_to(cursor_, tile_ * kRowTiles, range_.first_block, lane_);
#pragma unroll
    for (int s = 0; s < kStages; ++s) start_copy(stages + s * stage_bytes_);
  }

  /// The oldest stage, when its copy is there.
  __device__ const std::byte* wait() {
    wait_copies<kStages - 1>();
    __syncwarp();
    return stage_;
  }

  /// All lanes have read the oldest stage: it takes the next block.
  __device__ void advance() {
    __syncwarp();
    start_copy(stage_);
    stage_ += stage_bytes_;
    if (stage_ == stages_ + kStages * stage_bytes_) stage_ = stages_;
  }

 private:
  __device__ void start_copy(std::byte* stage) {
    if (tile_ < range_.end_tile) {
      codec_.copy(cursor_, left_ == range_.end_block - range_.first_block, stage, lane_);
      codec_.advance(cursor_);
      if (--left_ == 0) {
        left_ = range_.end_block - range_.first_block;
        tile_ += range_.tile_step;
        codec_.move_to(cursor_, tile_ * kRowTiles, range_.first_block, lane_);
      }
    }
    commit_copies();
  }

  const Codec& codec_;
  std::byte* stages_;
  std::byte* stage_;  // the oldest
  int stage_bytes_;
  WeightRange range_;
  typename Codec::template Cursor<kRowTiles> cursor_;
  int tile_;  // of the next copy
  int left_;  // its blocks
  int lane_;
};

/// Shared memory: the warps' stages, then their sums twice, so that a row tile's are added up while the next one's come
/// in. Behind the `warps` that multiply may stand those that sum outliers, two a row tile.
template <class Codec, int kRowTiles, int kTokenTiles, int kStages>
__global__ void __launch_bounds__(kMaxStreamWarps* kWarpSize, 1)
    stream_kernel(const Codec codec, const StreamProduct p, const int warps) {
  using Partial = PartialSums<kRowTiles, kTokenTiles>;
  using Inputs = InputFragments<Codec, kTokenTiles>;
  extern __shared__ __align__(128) std::byte shared[];
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpSize, 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int ring_bytes = kStages * kRowTiles * codec.stage_bytes();
  const int num_partials = num_warps > warps ? warps + 1 : warps;
  auto* partials = reinterpret_cast<Partial*>(shared + warps * ring_bytes);
  const int num_tiles = (p.num_rows + Partial::kRows - 1) / Partial::kRows;
  let_next_kernel_start();
  int first_thread = 0;
  const auto finish_tile = [&](int tile) {
    __syncthreads();
    store_sums(codec, p, tile * kRowTiles, num_partials, first_thread, partials);
    first_thread += kWarpSize;
    if (first_thread >= static_cast<int>(blockDim.x)) first_thread = 0;
    // The other half: whoever still adds up this one reaches the next barrier only then.
    Partial* first = reinterpret_cast<Partial*>(shared + warps * ring_bytes);
    partials = partials == first ? first + num_partials : first;
  };

  if constexpr (Codec::kHasOutliers) {
    if (warp >= warps) {
      wait_for_earlier_kernels();
      for (int tile = static_cast<int>(blockIdx.x); tile < num_tiles; tile += static_cast<int>(gridDim.x)) {
        multiply_outliers(codec.outliers, p, tile * kRowTiles, warp - warps, lane, partials[warps]);
        finish_tile(tile);
      }
      return;
    }
  }

  const int first = warp * p.num_blocks / warps;
  const int end = (warp + 1) * p.num_blocks / warps;
  WeightRing<Codec, kRowTiles, kStages> ring(
      codec, shared + warp * ring_bytes,
      {first, end, static_cast<int>(blockIdx.x), num_tiles, static_cast<int>(gridDim.x)}, lane);
  // Weights are never written again: their copies may begin while the kernel before still makes the inputs.
  wait_for_earlier_kernels();
  Inputs inputs(p, first, end, lane);
  typename Inputs::Fragments even;
  typename Inputs::Fragments odd;
  if (first < end) inputs.load_next(even);
  typename Codec::Tables tables[kRowTiles];
  for (int tile = static_cast<int>(blockIdx.x); tile < num_tiles; tile += static_cast<int>(gridDim.x)) {
    float sums[kRowTiles][kTokenTiles][4] = {};
    // Multiplies a block by `now`, while `next` takes the inputs of the one behind it.
    const auto step = [&](int block, const typename Inputs::Fragments& now, typename Inputs::Fragments& next) {
      inputs.load_next(next);
      const std::byte* stage = ring.wait();
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const std::byte* mine = stage + r * codec.stage_bytes();
        if (block == first) codec.load_tables(mine, lane, tables[r]);
        multiply_block<Codec>(codec, tables[r], mine, lane, tile * kRowTiles + r, block, now, sums[r]);
      }
      ring.advance();
    };
    int block = first;
    for (; block + 1 < end; block += 2) {
      step(block, even, odd);
      step(block + 1, odd, even);
    }
    if (block < end) {
      step(block, even, odd);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int s = 0; s < kSegments; ++s) even[i][s] = odd[i][s];
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles * kTokenTiles * 4; ++i) {
      const int r = i / 4 / kTokenTiles;
      const int token_tile = i / 4 % kTokenTiles;
      const int c = i % 4;
      partials[warp].values[8 * token_tile + 2 * (lane % 4) + c % 2][kTileRows * r + lane / 4 + 8 * (c / 2)] =
          sums[r][token_tile][c];
    }
    finish_tile(tile);
  }
}

// ── Launch ─────────────────────────────────────────────────────────────────────────────────────────────────

inline constexpr int kMaxSharedBytes = 227 << 10;  // of a block, and with 1 KB more for each of a multiprocessor

/// Warps of a block, with those that sum outliers.
inline int warps_of(const StreamConfig& config, bool has_outliers) {
  return config.warps + (has_outliers ? 2 * config.row_tiles : 0);
}

/// `stage_bytes` of all stages of a warp.
inline int shared_bytes_of(const StreamConfig& config, std::int64_t num_tokens, bool has_outliers, int stage_bytes) {
  const int partials = config.warps + (has_outliers ? 1 : 0);
  const int tokens = num_tokens > 8 ? 16 : 8;
  return config.warps * stage_bytes + 2 * partials * tokens * (config.row_tiles * kTileRows + 4) * 4;
}

template <class Codec>
bool has_outliers(const Codec& codec) {
  if constexpr (Codec::kHasOutliers) return codec.outliers.rows != nullptr;
  return false;
}

template <class Codec, int kRowTiles, int kTokenTiles>
void launch_stream(const Codec& codec, const StreamProduct& p, const StreamConfig& config, cudaStream_t stream) {
  constexpr int kStages = Codec::kStages;
  const auto kernel = stream_kernel<Codec, kRowTiles, kTokenTiles, kStages>;
  const int num_warps = warps_of(config, has_outliers(codec));
  const int shared_bytes =
      shared_bytes_of(config, p.num_tokens, has_outliers(codec), kStages * kRowTiles * codec.stage_bytes());
  nibble::check(num_warps <= kMaxStreamWarps && shared_bytes <= kMaxSharedBytes, "cuda: too large a streaming product");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  constexpr int kRows = kRowTiles * kTileRows;
  const int num_tiles = (p.num_rows + kRows - 1) / kRows;
  const int grid = std::min(num_tiles, num_multiprocessors() * config.blocks_per_multiprocessor);
  launch_dependent(kernel, {.blocks = grid, .threads = num_warps * kWarpSize, .shared_bytes = shared_bytes}, stream,
                   codec, p, config.warps);
}

/// The product with an explicit configuration, which has two row tiles for more than 8 tokens.
template <class Codec>
void multiply_streamed(const Codec& codec, const StreamProduct& p, const StreamConfig& config, cudaStream_t stream) {
  nibble::check(p.num_tokens <= (config.row_tiles == 2 ? kMaxStreamedTokens : 8), "cuda: too many tokens to stream");
  if (p.num_tokens > 8) {
    launch_stream<Codec, 2, 2>(codec, p, config, stream);
  } else if (config.row_tiles == 2) {
    launch_stream<Codec, 2, 1>(codec, p, config, stream);
  } else {
    launch_stream<Codec, 1, 1>(codec, p, config, stream);
  }
}

/// What measures best on an H100: about sixteen warps a multiprocessor; row tiles that fill whole rounds of blocks, and
/// columns whole rounds of warps. Two row tiles share their inputs, which counts where there are several rounds.
template <class Codec>
StreamConfig choose_stream_config(const Codec& codec, const StreamProduct& p) {
  constexpr StreamConfig kFewTokens[] = {{2, 8, 2}, {1, 8, 2},  {2, 16, 1}, {2, 4, 3}, {2, 6, 2}, {2, 12, 1},
                                         {2, 8, 1}, {1, 16, 1}, {1, 8, 1},  {1, 4, 1}, {1, 1, 1}};
  constexpr StreamConfig kManyTokens[] = {{2, 4, 3}, {2, 12, 1}, {2, 6, 2}, {2, 8, 1}, {2, 4, 1}, {2, 1, 1}};
  const auto use_of = [](int items, int places) {
    const int rounds = (items + places - 1) / places;
    return static_cast<double>(items) / (static_cast<double>(rounds) * places);
  };
  const std::span<const StreamConfig> configs =
      p.num_tokens > 8 ? std::span<const StreamConfig>(kManyTokens) : std::span<const StreamConfig>(kFewTokens);
  StreamConfig best = configs.back();
  double best_use = 0;
  for (const StreamConfig& config : configs) {
    const int blocks = config.blocks_per_multiprocessor;
    const int block_warps = warps_of(config, has_outliers(codec));
    const int warps = block_warps * blocks;
    const int shared_bytes = shared_bytes_of(config, p.num_tokens, has_outliers(codec),
                                             Codec::kStages * config.row_tiles * codec.stage_bytes());
    // Registers are for sixteen warps, or twenty with one row tile.
    if (config.warps > p.num_blocks || block_warps > kMaxStreamWarps) continue;
    if (warps > (config.row_tiles == 2 ? 16 : 20)) continue;
    if ((shared_bytes + 1024) * blocks > kMaxSharedBytes + 1024) continue;
    const int rows = config.row_tiles * kTileRows;
    const int num_tiles = (p.num_rows + rows - 1) / rows;
    const int places = num_multiprocessors() * blocks;
    double use = use_of(num_tiles, places) * (0.5 + 0.5 * use_of(p.num_blocks, config.warps)) *
                 std::min(1.0, 0.4 + 0.6 * warps / 16);
    if (config.row_tiles == 2 && num_tiles > places) use *= 1.03;
    if (use > best_use + 0.005) {
      best = config;
      best_use = use;
    }
  }
  return best;
}

}  // namespace nibble::backend::cuda
