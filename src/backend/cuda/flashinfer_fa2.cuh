#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/variants.cuh>

#include "backend/cuda/flashinfer_attention.h"
#include "backend/cuda/handles.h"
#include "core/error.h"

/// FlashInfer's FA2 template (tensor cores by mma.sync; K and V through cp.async), launched by us: its own launcher
/// instantiates four KV tiles for each query tile and plans with its own lists.
///
/// Regime: decode of any group size with tiles of 16 rows, four warps side by side along the context; prefill where FA3
/// cannot (FP8 cache, windows) with tiles of 64 or 128 rows. Decode is bound by reading K and V once: 2 * context *
/// kv_width * size bytes a sequence, and is measured against a plain read of as many.
namespace nibble::backend::cuda {

template <class Kv>
struct Fa2Params {
  using DTypeQ = half;
  using DTypeKV = Kv;
  using DTypeO = half;
  using IdType = std::int32_t;

  half* q;
  flashinfer::paged_kv_t<Kv, IdType> paged_kv;
  IdType* q_indptr;
  half* o;
  float* lse;
  flashinfer::uint_fastdiv group_size;
  std::uint32_t num_qo_heads;
  IdType q_stride_n;
  IdType q_stride_h;
  std::uint32_t k_sf_stride_page, k_sf_stride_n, k_sf_stride_h;  // of FP4 caches
  std::uint32_t v_sf_stride_page, v_sf_stride_n, v_sf_stride_h;
  std::int32_t window_left;  // tokens before a query's own; -1: all
  float sm_scale;
  float v_scale;
  IdType* request_indices;
  IdType* qo_tile_indices;
  IdType* kv_tile_indices;
  IdType* o_indptr;
  bool* block_valid_mask;
  IdType* kv_chunk_size_ptr;
  bool partition_kv;
  const std::int32_t* context_len;

  __host__ __device__ std::uint32_t get_qo_len(std::uint32_t sequence) const {
    return q_indptr[sequence + 1] - q_indptr[sequence];
  }
  /// Not from paged_kv: its indptr says where a row of our block table begins, whose length is that of the longest.
  __host__ __device__ std::uint32_t get_kv_len(std::uint32_t sequence) const { return context_len[sequence]; }
};

/// The query tile and how it is spread over four warps; kMmaKv: sixteens of the context that a warp takes at a time,
/// so many that two blocks fit a multiprocessor's shared memory.
template <int kHeadDim, class Kv, int kTileRows, int kMmaKv>
struct Fa2Kernel {
  using Params = Fa2Params<Kv>;
  using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/true,
                                               /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;
  static constexpr int kWarpsQ = flashinfer::get_num_warps_q(kTileRows);
  static constexpr int kWarpsKv = flashinfer::get_num_warps_kv(kTileRows);
  using Traits =
      flashinfer::KernelTraits<flashinfer::MaskMode::kCausal, kTileRows, flashinfer::get_num_mma_q(kTileRows), kMmaKv,
                               kHeadDim / 16, kHeadDim / 16, kWarpsQ, kWarpsKv, flashinfer::PosEncodingMode::kNone,
                               half, Kv, half, float, std::int32_t, Variant>;
  static_assert(!Traits::IsInvalid());
  static constexpr std::size_t kSharedBytes = sizeof(typename Traits::SharedStoragePaged);
  static constexpr int kThreads = 32 * kWarpsQ * kWarpsKv;

  static auto kernel() {
    auto* kernel = flashinfer::BatchPrefillWithPagedKVCacheKernel</*SAME_KV_STRIDES=*/true, Traits, Params>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return kernel;
  }

  static std::int32_t blocks_per_multiprocessor() {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel(), kThreads, kSharedBytes));
    return blocks;
  }

  static Params params(const PagedAttention& attention, const Fa2Work& work) {
    // The template's types are not const; the kernel only reads what we hand it as such.
    const auto open = [](const std::int32_t* values) { return const_cast<std::int32_t*>(values); };
    const auto size = [](std::int32_t value) { return static_cast<std::uint32_t>(value); };
    Params params{};
    params.q = static_cast<half*>(const_cast<void*>(attention.q));
    params.paged_kv = flashinfer::paged_kv_t<Kv, std::int32_t>(
        size(attention.num_kv_heads), size(attention.block_size), kHeadDim, size(attention.num_sequences),
        flashinfer::QKVLayout::kNHD, static_cast<Kv*>(const_cast<void*>(attention.keys)),
        static_cast<Kv*>(const_cast<void*>(attention.values)), open(attention.block_table), open(attention.table_start),
        nullptr);
    params.q_indptr = open(attention.query_start);
    const bool is_split = work.partial_start != nullptr;
    params.o = static_cast<half*>(is_split ? work.partials : attention.out);
    params.lse = is_split ? work.partial_sums : nullptr;
    params.o_indptr = open(is_split ? work.partial_start : attention.query_start);
    params.partition_kv = is_split;
    params.group_size = flashinfer::uint_fastdiv(size(attention.num_heads / attention.num_kv_heads));
    params.num_qo_heads = size(attention.num_heads);
    params.q_stride_n = static_cast<std::int32_t>(attention.q_stride);
    params.q_stride_h = kHeadDim;
    params.window_left = attention.sliding_window - 1;
    params.sm_scale = attention.scale;
    params.v_scale = attention.v_scale;
    params.request_indices = open(work.sequence);
    params.qo_tile_indices = open(work.q_tile);
    params.kv_tile_indices = open(work.kv_chunk);
    params.block_valid_mask = const_cast<bool*>(work.is_used);
    params.kv_chunk_size_ptr = open(work.chunk_len);
    params.context_len = attention.context_len;
    return params;
  }

  static void run(const PagedAttention& attention, const Fa2Work& work, cudaStream_t stream) {
    // It may start while what wrote q, K and V still runs: it waits for that before it reads them.
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(work.num_tiles), 1, static_cast<unsigned>(attention.num_kv_heads));
    config.blockDim = dim3(32, kWarpsQ, kWarpsKv);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = can_overlap_launches() ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel(), params(attention, work)));
  }
};

/// The kernels of one head_dim; the numbers are kMmaKv.
template <int kHeadDim>
struct Fa2Kernels;
template <>
struct Fa2Kernels<64> {
  using DecodeF16 = Fa2Kernel<64, half, 16, 4>;
  using DecodeF8 = Fa2Kernel<64, __nv_fp8_e4m3, 16, 4>;
  using PrefillF16 = Fa2Kernel<64, half, 128, 4>;
  using PrefillF8 = Fa2Kernel<64, __nv_fp8_e4m3, 128, 4>;
};
template <>
struct Fa2Kernels<128> {
  using DecodeF16 = Fa2Kernel<128, half, 16, 2>;
  using DecodeF8 = Fa2Kernel<128, __nv_fp8_e4m3, 16, 4>;
  using PrefillF16 = Fa2Kernel<128, half, 128, 4>;
  using PrefillF8 = Fa2Kernel<128, __nv_fp8_e4m3, 128, 4>;
};
template <>
struct Fa2Kernels<256> {
  using DecodeF16 = Fa2Kernel<256, half, 16, 1>;
  using DecodeF8 = Fa2Kernel<256, __nv_fp8_e4m3, 16, 2>;
  using PrefillF16 = Fa2Kernel<256, half, 64, 4>;
  using PrefillF8 = Fa2Kernel<256, __nv_fp8_e4m3, 64, 4>;
};

/// Calls `use` with the kernel for a dtype and tile.
template <int kHeadDim, class Use>
auto with_fa2_kernel(DType kv_dtype, std::int32_t tile_rows, Use use) {
  using Kernels = Fa2Kernels<kHeadDim>;
  nibble::check(tile_rows == kDecodeTileRows || tile_rows == prefill_tile_rows(kHeadDim),
                "FA2: no kernel of this tile");
  const bool is_decode = tile_rows == kDecodeTileRows;
  if (kv_dtype == DType::F8E4M3) {
    return is_decode ? use(typename Kernels::DecodeF8{}) : use(typename Kernels::PrefillF8{});
  }
  nibble::check(kv_dtype == DType::F16, "FA2: no kernel of this KV dtype");
  return is_decode ? use(typename Kernels::DecodeF16{}) : use(typename Kernels::PrefillF16{});
}

}  // namespace nibble::backend::cuda
