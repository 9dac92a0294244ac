#include <cutlass/numeric_types.h>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>

#include "backend/cuda/flashinfer_attention.h"
#include "backend/cuda/handles.h"

// FA3 (wgmma; a warp group that gathers K and V block by block with cp.async, two that multiply): prefill on Hopper,
// f16. Bound by arithmetic: 4 * head_dim * num_heads operations for each pair of a token and a key before it.
namespace nibble::backend::cuda {
namespace {

using Params = flashinfer::BatchPrefillPagedParams<cutlass::half_t, cutlass::half_t, cutlass::half_t, std::int32_t>;

Params fa3_params(const PagedAttention& attention, const Fa3Work& work) {
  const auto open = [](const std::int32_t* values) { return const_cast<std::int32_t*>(values); };
  const auto f16 = [](const void* values) { return static_cast<cutlass::half_t*>(const_cast<void*>(values)); };
  const std::int64_t kv_width = std::int64_t{attention.num_kv_heads} * attention.head_dim;
  Params params{};
  params.q_ptr = f16(attention.q);
  params.k_ptr = f16(attention.keys);
  params.v_ptr = f16(attention.values);
  params.o_ptr = f16(attention.out);
  params.work_indptr = open(work.work_start);
  params.qo_tile_indices = open(work.q_tile);
  params.head_indices = open(work.head);
  params.batch_indices = open(work.sequence);
  params.qo_indptr = open(work.query_start);
  params.qo_lens = open(work.query_len);
  params.kv_indptr = open(work.table_start);
  params.kv_lens = open(work.context_len);
  params.kv_indices = open(attention.block_table);
  params.additional_params.sm_scale = attention.scale;
  params.q_stride_n = attention.q_stride;
  params.q_stride_h = attention.head_dim;
  params.o_stride_n = std::int64_t{attention.num_heads} * attention.head_dim;
  params.o_stride_h = attention.head_dim;
  params.k_stride_n = params.v_stride_n = kv_width;
  params.k_stride_h = params.v_stride_h = attention.head_dim;
  params.k_page_stride = params.v_page_stride = attention.block_size * kv_width;
  params.nnz_qo = attention.num_tokens;
  params.num_qo_heads = attention.num_heads;
  params.num_kv_heads = attention.num_kv_heads;
  params.group_size = attention.num_heads / attention.num_kv_heads;
  params.page_size = attention.block_size;
  params.window_left = -1;
  params.causal = true;
  return params;
}

template <int kHeadDim>
void run(Params& params, cudaStream_t stream) {
  check(flashinfer::BatchPrefillWithPagedKVCacheDispatched<kHeadDim, kHeadDim, flashinfer::MaskMode::kCausal,
                                                           /*LEFT_SLIDING_WINDOW=*/false,
                                                           /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false,
                                                           flashinfer::StandardAttention>(params, /*enable_pdl=*/false,
                                                                                          stream));
}

}  // namespace

void run_fa3(const PagedAttention& attention, const Fa3Work& work, cudaStream_t stream) {
  Params params = fa3_params(attention, work);
  switch (attention.head_dim) {
    case 64: return run<64>(params, stream);
    case 128: return run<128>(params, stream);
    default: nibble::check(false, "FA3: no kernel of this head_dim");
  }
}

}  // namespace nibble::backend::cuda
