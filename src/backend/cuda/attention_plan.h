#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention_schedule.h"
#include "backend/cuda/flashinfer_attention.h"
#include "backend/cuda/handles.h"
#include "backend/cuda/kv_cache.h"
#include "core/buffer.h"

namespace nibble::backend::cuda {

/// Attention of a step through FlashInfer's kernels: planned on the host before the step, run for each layer inside it.
///
/// Sequences whose query is one tile of 16 rows (decode), and those that only pad the batch, go to the FA2 kernel with
/// their contexts split and merged; longer ones to FA3, or to FA2 with larger tiles. A step of nothing but single
/// tokens has grids and addresses that depend on its number of sequences alone, so it can be captured into a CUDA graph
/// and replayed after another `plan`. Buffers grow with the largest step; `generation` then changes, and graphs
/// captured before are no longer valid.
class AttentionPlan {
 public:
  AttentionPlan();

  /// Room for steps up to these limits, so that nothing grows in the middle of serving.
  void reserve(const StepLimits& limits, const KvCache& cache);

  /// Plans every kind of layer in the cache that these kernels know and uploads the lists. Waits only for the upload
  /// before the previous one.
  void plan(const ForwardBatch& batch, const KvCache& cache, cudaStream_t stream);

  /// Counts reallocations of what a captured step points to.
  std::uint64_t generation() const { return generation_; }

  /// Do these kernels compute such a layer? activations: of qkv and out.
  static bool is_supported(const KvSpec& layer, ActivationKind activations);

  /// Attention as in attention.h, of a layer that is_supported; the planned batch's block_table on the device.
  void run(const Activation& qkv, const AttentionSpec& spec, const CudaKvCache& cache, std::int64_t layer_idx,
           const std::int32_t* block_table, Activation& out, cudaStream_t stream) const;

 private:
  /// FA2's lists as places in the upload.
  struct PlannedFa2 {
    std::int32_t tile_rows = 0;
    std::int32_t num_tiles = 0;
    std::size_t sequence = 0, q_tile = 0, kv_chunk = 0, is_used = 0, chunk_len = 0, partial_start = 0, merge_rows = 0;
    std::int64_t num_merge_rows = 0;
    std::int64_t num_partials = 0;
    bool is_split = false;
  };
  struct PlannedFa3 {
    std::size_t work_start = 0, q_tile = 0, head = 0, sequence = 0, query_start = 0, query_len = 0, table_start = 0,
                context_len = 0;
  };
  /// A kind of layer, and its work in this step.
  struct Planned {
    KvSpec layer;  // scales aside
    std::optional<PlannedFa2> decode;
    std::optional<PlannedFa2> prefill_fa2;
    std::optional<PlannedFa3> prefill_fa3;
  };

  void find_kinds(const KvCache& cache);
  void make_lists(const ForwardBatch& batch, const KvCache& cache);
  void plan_layer(Planned& planned, const ForwardBatch& batch, std::int32_t block_size);
  std::int32_t num_slots(const KvSpec& layer, std::int32_t tile_rows) const;
  PlannedFa2 plan_fa2(std::span<const SequenceLengths> sequences, const KvSpec& layer, std::int32_t tile_rows,
                      std::int32_t block_size);
  PlannedFa3 plan_fa3(std::span<const SequenceLengths> sequences, const KvSpec& layer);
  template <class T>
  std::size_t place(std::span<const T> values, std::size_t capacity = 0);
  /// At least so many bytes of lists, and partial results: rows of a head, their elements.
  void make_room(std::int64_t list_bytes, std::int64_t results, std::int64_t elements);
  void upload(cudaStream_t stream);
  void run_fa2_and_merge(const PagedAttention& attention, const PlannedFa2& planned, cudaStream_t stream) const;
  template <class T>
  const T* device(std::size_t place) const {
    return reinterpret_cast<const T*>(static_cast<const std::byte*>(lists_.data()) + place);
  }

  struct Staging {
    Buffer host;  // pinned
    Event uploaded;
  };

  std::int32_t compute_major_ = 0;
  std::int32_t num_multiprocessors_ = 0;
  std::uint64_t generation_ = 0;

  // Of the step planned last.
  std::int64_t num_tokens_ = 0;
  std::int32_t num_sequences_ = 0;
  bool is_decode_ = false;  // single tokens only
  std::int64_t block_table_stride_ = 0;
  std::size_t table_start_ = 0, query_start_ = 0, context_len_ = 0;
  std::vector<Planned> planned_;
  std::vector<std::byte> staged_;

  std::array<Staging, 2> staging_;
  std::size_t next_staging_ = 0;
  Buffer lists_;  // the upload on the device
  Buffer partials_;
  Buffer partial_sums_;

  // Reused from step to step.
  std::vector<std::int32_t> table_starts_;
  std::vector<SequenceLengths> short_, long_;
  Fa2Schedule fa2_;
  Fa3Schedule fa3_;
};

}  // namespace nibble::backend::cuda
