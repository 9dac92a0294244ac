#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "backend/cuda/handles.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/warpgroup.cuh"
#include "backend/cuda/weight_codecs.cuh"
#include "backend/cuda/wide_inputs.h"
#include "backend/cuda/wide_product.cuh"

/// y = W x for a few dozen to about a thousand tokens, on Hopper: between where reading W is all that counts
/// (stream_kernels.cuh) and where writing W out as f16 for cuBLASLt pays.
///
/// Weights are the A operand of warpgroup products, made in registers from codes; inputs are B and lie in shared memory
/// in the order of columns that packed weights have (wide_inputs.h). Each lane copies just the codes of its own A
/// fragments into a ring of its own, so that nobody waits for anybody; one thread copies boxes of inputs.
///
/// The iterations (tile, 128 columns) of all tiles are dealt to as many blocks of threads as there are multiprocessors,
/// in contiguous ranges. Who has a tile's first columns adds, in order, what others leave in memory: results are the
/// same in every run.
namespace nibble::backend::cuda {

inline constexpr int kWideWarpgroups = 2;
inline constexpr int kWideConsumers = 128 * kWideWarpgroups;
inline constexpr int kWideThreads = kWideConsumers + 128;  // and the warpgroup one of whose threads copies inputs
inline constexpr int kInputCols = 64;                      // of a box: 128 bytes

/// What a lane keeps of a block of 16 rows × 128 columns.
template <class Codec>
struct LaneShare;

template <int kCodeBits, bool kWholeBlocks>
struct LaneShare<IntCodec<kCodeBits, kWholeBlocks>> {
  using Codec = IntCodec<kCodeBits, kWholeBlocks>;
  static constexpr int kBits = kCodeBits;
  static constexpr int kMaxGroups = kWholeBlocks ? 1 : 2;

  __device__ static int num_groups(const Codec& codec) {
    return kWholeBlocks ? 1 : kSegments / codec.segments_per_group;
  }
  /// `eight`: the lane's eight bytes of a group. The codec finds them where they would stand in a block.
  __device__ static GroupGrid grid(const Codec& codec, const std::byte* eight, int lane) {
    return codec.grid(eight - code_bytes(kBits) - lane / 4 * 8, 0, lane, 0, 0);
  }
  __device__ static void read_tables(const Codec&, int, int, typename Codec::Tables&) {}
};

template <int kCodeBits>
struct LaneShare<CodebookCodec<kCodeBits>> {
  using Codec = CodebookCodec<kCodeBits>;
  static constexpr int kBits = kCodeBits;
  static constexpr int kMaxGroups = 0;

  __device__ static int num_groups(const Codec&) { return 0; }
  __device__ static GroupGrid grid(const Codec&, const std::byte*, int) { return {}; }
  /// A row tile's, from where they would stand behind a block's codes.
  __device__ static void read_tables(const Codec& codec, int tile, int lane, typename Codec::Tables& to) {
    codec.load_tables(codec.tables + std::int64_t{tile} * Codec::kTableBytes - code_bytes(kBits), lane, to);
  }
};

/// Vectors of the layout: word_offset().
template <class Codec>
constexpr int vector_bytes() {
  return LaneShare<Codec>::kBits == 3 ? 8 : 16;
}
template <class Codec>
constexpr int lane_bytes() {
  return Codec::kWords * 4 + LaneShare<Codec>::kMaxGroups * 8;
}

/// `kBlocks`: 64-row blocks of a warpgroup.
template <class Codec, int kTokens, int kBlocks>
struct WideConfig {
  static constexpr int kTiles = kWideWarpgroups * kBlocks * 4;  // of 16 rows
  static constexpr int kRows = kTiles * kTileRows;
  static constexpr int kInputBytes = kTokens * kInputCols * 2;
  static constexpr int kInputStages = kTokens == 64 ? 8 : kTokens == 128 ? 6 : 4;
  static constexpr int kSlotBytes = kWideConsumers * kBlocks * lane_bytes<Codec>();
  static constexpr int kRoom = 220 * 1024 - kInputStages * kInputBytes;
  static constexpr int kSlots = std::min(kRoom / kSlotBytes, 8);
  static_assert(kSlots >= 2);
  static constexpr int kSharedBytes = kInputStages * (kInputBytes + 16) + kSlots * kSlotBytes + 1024;
};

/// Iterations dealt in contiguous ranges that differ by one at most.
struct Deal {
  int base;
  int rest;  // the first `rest` get one more
  __device__ Deal(int total, int num_blocks) : base(total / num_blocks), rest(total % num_blocks) {}
  __device__ int begin(int block) const { return block * base + min(block, rest); }
};

__device__ inline void sync_consumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWideConsumers) : "memory");
}

/// What one lane copies and reads back; vectors of all lanes lie side by side.
template <class Codec, int kTokens, int kBlocks>
class LaneRing {
 public:
  using Config = WideConfig<Codec, kTokens, kBlocks>;
  using Share = LaneShare<Codec>;
  static constexpr int kVectorBytes = vector_bytes<Codec>();
  static constexpr int kVectors = Codec::kWords * 4 / kVectorBytes;

  __device__ LaneRing(const Codec& codec, std::byte* slots, int first_tile, int last_tile)
      : codec_(codec), slots_(slots), first_tile_(first_tile), last_tile_(last_tile) {}

  /// Starts copies of block `block` of the lane's row tiles from `tile_base` on.
  __device__ void fetch(int tile_base, int block) {
    std::byte* slot = slots_ + fetch_slot_ * Config::kSlotBytes;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const std::byte* from = codec_.packed.block(tile(tile_base, b), block);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        copy_async<kVectorBytes>(vector(slot, b, v), from + (v * 32 + lane()) * kVectorBytes);
      }
#pragma unroll
      for (int g = 0; g < Share::kMaxGroups; ++g) {
        if (g < Share::num_groups(codec_)) {
          copy_async<8>(eight(slot, b, g), from + code_bytes(Share::kBits) + (g * 8 + lane() / 4) * 8);
        }
      }
    }
    if (++fetch_slot_ == Config::kSlots) fetch_slot_ = 0;
  }

  /// The oldest slot's words, and the grids of its halves of 64 columns.
  __device__ void read(std::uint32_t (&words)[kBlocks][Codec::kWords], GroupGrid (&grids)[kBlocks][2]) {
    std::byte* slot = slots_ + read_slot_ * Config::kSlotBytes;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kVectorBytes == 8) {
          const uint2 two = *reinterpret_cast<const uint2*>(vector(slot, b, v));
          words[b][2 * v] = two.x;
          words[b][2 * v + 1] = two.y;
        } else {
          const uint4 four = *reinterpret_cast<const uint4*>(vector(slot, b, v));
          words[b][4 * v] = four.x;
          words[b][4 * v + 1] = four.y;
          words[b][4 * v + 2] = four.z;
          words[b][4 * v + 3] = four.w;
        }
      }
      if constexpr (Share::kMaxGroups > 0) {
        grids[b][0] = Share::grid(codec_, eight(slot, b, 0), lane());
        grids[b][1] = Share::num_groups(codec_) == 1 ? grids[b][0] : Share::grid(codec_, eight(slot, b, 1), lane());
      }
    }
    if (++read_slot_ == Config::kSlots) read_slot_ = 0;
  }

  /// Packed row tile of block b; rows beyond the last repeat it and are never stored.
  __device__ int tile(int tile_base, int b) const { return min(tile_base + first_tile_ + 4 * b, last_tile_); }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static std::byte* vector(std::byte* slot, int b, int v) {
    return slot + ((b * kVectors + v) * kWideConsumers + static_cast<int>(threadIdx.x)) * kVectorBytes;
  }
  __device__ static std::byte* eight(std::byte* slot, int b, int g) {
    constexpr int kCodes = kBlocks * kVectors * kWideConsumers * kVectorBytes;
    return slot + kCodes + ((b * Share::kMaxGroups + g) * kWideConsumers + static_cast<int>(threadIdx.x)) * 8;
  }

  const Codec& codec_;
  std::byte* slots_;
  int first_tile_;
  int last_tile_;
  int fetch_slot_ = 0;
  int read_slot_ = 0;
};

/// A's registers hold codes - zeros: times the rows' scales.
template <class Codec>
__device__ inline void scale_fragments(const GroupGrid& grid, Fragments& a) {
  if constexpr (Codec::kScalesGroups) {
    const __half2 scales[2] = {__float2half2_rn(grid.scale[0]), __float2half2_rn(grid.scale[1])};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[step][i] = as_bits(__hmul2(as_half2(a[step][i]), scales[i % 2]));
    }
  }
}

/// The thread that copies boxes of inputs for its block of threads.
template <int kInputStages, int kTokens>
__device__ void copy_inputs(const CUtensorMap& x, const WideProduct& p, int begin, int end, int num_token_tiles,
                            std::byte* tiles, std::uint64_t* full, std::uint64_t* empty) {
  constexpr int kBytes = kTokens * kInputCols * 2;
  prefetch_tensor_map(&x);
  wait_for_earlier_kernels();
  int stage = 0;
  std::uint32_t parity = 1;
  int block = begin % p.num_blocks;
  int token_tile = begin / p.num_blocks % num_token_tiles;
  for (int n = begin; n < end; ++n) {
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      wait_barrier(empty + stage, parity);
      expect_bytes(full + stage, kBytes);
      copy_box(tiles + stage * kBytes, &x, block * kBlockCols + half * kInputCols, token_tile * kTokens, full + stage);
      if (++stage == kInputStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    if (++block == p.num_blocks) {
      block = 0;
      if (++token_tile == num_token_tiles) token_tile = 0;
    }
  }
}

template <class Codec, int kTokens, int kBlocks>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_kernel(const Codec codec, const __grid_constant__ CUtensorMap x, const WideProduct p) {
  using Config = WideConfig<Codec, kTokens, kBlocks>;
  constexpr int kStages = Config::kInputStages;
  constexpr int kN = kTokens < 128 ? kTokens : 128;  // of one product
  constexpr int kParts = kTokens / kN;
  constexpr int kSums = kN / 2;
  extern __shared__ std::byte wide_shared[];
  std::byte* inputs = wide_shared + (1024 - shared_address(wide_shared) % 1024) % 1024;
  std::byte* slots = inputs + kStages * Config::kInputBytes;
  auto* full = reinterpret_cast<std::uint64_t*>(slots + Config::kSlots * Config::kSlotBytes);
  std::uint64_t* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + s, 1);
      init_barrier(empty + s, kWideConsumers / 32);
    }
    publish_barriers();
  }
  __syncthreads();
  let_next_kernel_start();
  const int num_row_tiles = (p.num_tiles + Config::kTiles - 1) / Config::kTiles;
  const int num_token_tiles = (p.num_tokens + kTokens - 1) / kTokens;
  const Deal deal(num_row_tiles * num_token_tiles * p.num_blocks, static_cast<int>(gridDim.x));
  const auto me = static_cast<int>(blockIdx.x);
  const int begin = deal.begin(me);
  const int end = deal.begin(me + 1);

  if (threadIdx.x >= kWideConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kWideConsumers) {
      copy_inputs<kStages, kTokens>(x, p, begin, end, num_token_tiles, inputs, full, empty);
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int first_tile = thread / 128 * kBlocks * 4 + thread / 32 % 4;
  LaneRing<Codec, kTokens, kBlocks> ring(codec, slots, first_tile, p.num_tiles - 1);

  // What is fetched next, kSlots - 1 iterations ahead.
  int ahead = begin;
  int ahead_block = begin % p.num_blocks;
  int ahead_tile = begin / p.num_blocks;
  const auto fetch = [&] {
    if (ahead < end) {
      ring.fetch(ahead_tile / num_token_tiles * Config::kTiles, ahead_block);
      ++ahead;
      if (++ahead_block == p.num_blocks) {
        ahead_block = 0;
        ++ahead_tile;
      }
    }
    commit_copies();
  };
#pragma unroll 1
  for (int i = 0; i < Config::kSlots - 1; ++i) fetch();

  float sums[kBlocks][kParts][kSums];
  typename Codec::Tables tables[kBlocks];
  int stage = 0;
  std::uint32_t parity = 0;
  for (int n = begin; n < end;) {
    const int tile = n / p.num_blocks;
    const int tile_base = tile / num_token_tiles * Config::kTiles;
    const int tile_begin = tile * p.num_blocks;
    const int tile_end = tile_begin + p.num_blocks;
    const int piece_end = min(tile_end, end);
    const bool is_first = n == tile_begin;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      LaneShare<Codec>::read_tables(codec, ring.tile(tile_base, b), lane, tables[b]);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[b][part][i] = 0;
      }
    }
    int previous = -1;  // the stage of products still under way
    for (; n < piece_end; ++n) {
      wait_copies<Config::kSlots - 2>();
      std::uint32_t words[kBlocks][Codec::kWords];
      GroupGrid grids[kBlocks][2];
      ring.read(words, grids);
      fetch();
      // Two halves of 64 columns, each with registers of its own: the other half's products are still under way.
      Fragments a[2][kBlocks][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            codec.fragments(words[b], 2 * half + s, grids[b][half], tables[b], a[half][b][s]);
            scale_fragments<Codec>(grids[b][half], a[half][b][s]);
          }
        }
        wait_barrier(full + stage, parity);
        const std::uint64_t box = describe_rows(inputs + stage * Config::kInputBytes);
        fence_products();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              WarpgroupProduct<kN>::run(sums[b][part], a[half][b][i / 2][i % 2],
                                        box + i * (32 >> 4) + part * (kN * 128 >> 4));
            }
          }
        }
        commit_products();
        wait_for_products<1>();
        if (lane == 0 && previous >= 0) arrive(empty + previous);
        previous = stage;
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    wait_for_products<0>();
    if (lane == 0) arrive(empty + previous);
    wait_for_earlier_kernels();

    constexpr int kTile = Config::kRows * kTokens;
    const auto vector_at = [&](int block, int b, int part, int i) {
      return reinterpret_cast<float4*>(p.partials + static_cast<std::int64_t>(block) * kTile +
                                       ((b * kParts + part) * kSums + i) * kWideConsumers + thread * 4);
    };
    if (!is_first) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int i = 0; i < kSums; i += 4) {
            const float* four = sums[b][part] + i;
            __stcg(vector_at(me, b, part, i), float4{four[0], four[1], four[2], four[3]});
          }
        }
      }
      __threadfence();
      sync_consumers();
      if (thread == 0) {
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.arrived + me), "r"(1U) : "memory");
      }
      continue;
    }
    for (int other = me + 1; n < tile_end && deal.begin(other) < tile_end; ++other) {
      if (thread == 0) {
        std::uint32_t has_come = 0;
        while (has_come == 0) {
          asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(has_come) : "l"(p.arrived + other) : "memory");
        }
        p.arrived[other] = 0;
      }
      sync_consumers();
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int i = 0; i < kSums; i += 4) {
            const float4 four = __ldcg(vector_at(other, b, part, i));
            sums[b][part][i] += four.x;
            sums[b][part][i + 1] += four.y;
            sums[b][part][i + 2] += four.z;
            sums[b][part][i + 3] += four.w;
          }
        }
      }
    }
    const int first_token = tile % num_token_tiles * kTokens + lane % 4 * 2;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int first_row = (tile_base + first_tile + 4 * b) * kTileRows + lane / 4;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          const int token = first_token + part * kN + i / 4 * 8 + i % 2;
          const int row = first_row + i % 4 / 2 * 8;
          if (token >= p.num_tokens || row >= p.num_rows) continue;
          const std::int64_t at = token * p.y_stride + row;
          if (p.has_float_y) {
            static_cast<float*>(p.y)[at] = sums[b][part][i];
          } else {
            static_cast<__half*>(p.y)[at] = __float2half_rn(sums[b][part][i]);
          }
        }
      }
    }
  }
}

// ── Launch ─────────────────────────────────────────────────────────────────────────────────────────────────

template <class Codec, int kTokens, int kBlocks>
void launch_wide(const Codec& codec, const void* x, WideProduct p, cudaStream_t stream) {
  using Config = WideConfig<Codec, kTokens, kBlocks>;
  const auto kernel = wide_kernel<Codec, kTokens, kBlocks>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes));
  const int num_row_tiles = (p.num_tiles + Config::kTiles - 1) / Config::kTiles;
  const int num_token_tiles = (p.num_tokens + kTokens - 1) / kTokens;
  const int blocks = std::min(num_multiprocessors(), num_row_tiles * num_token_tiles * p.num_blocks);
  const CUtensorMap map = map_inputs(x, p.num_tokens, std::int64_t{p.num_blocks} * kBlockCols, kInputCols, kTokens);
  launch_dependent(kernel, {.blocks = blocks, .threads = kWideThreads, .shared_bytes = Config::kSharedBytes}, stream,
                   codec, map, p);
}

template <class Codec>
void multiply_wide(const Codec& codec, const void* x, const WideProduct& p, cudaStream_t stream) {
  // Tiles of 256 rows read inputs half as often; few of them would leave too little for each block of threads.
  constexpr int kManyRows = 10000;
  if (p.num_tokens > 128) {
    launch_wide<Codec, 256, 1>(codec, x, p, stream);
  } else if (p.num_tokens > 64) {
    launch_wide<Codec, 128, 1>(codec, x, p, stream);
  } else if (p.num_rows < kManyRows) {
    launch_wide<Codec, 64, 1>(codec, x, p, stream);
  } else {
    launch_wide<Codec, 64, 2>(codec, x, p, stream);
  }
}

}  // namespace nibble::backend::cuda
