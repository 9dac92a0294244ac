#include "backend/cuda/attention_plan.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/attention_merge.h"
#include "backend/cuda/device.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

constexpr std::size_t kListAlignment = 16;
// Below, a block's start and the merge cost more than the reads it saves.
constexpr std::int32_t kMinDecodeChunk = 128;
constexpr std::int32_t kMinPrefillChunk = 512;

std::int64_t div_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

AttentionHeads heads_of(const KvSpec& layer) {
  return {layer.num_heads, layer.num_kv_heads, layer.sliding_window};
}

bool is_same_kind(const KvSpec& a, const KvSpec& b) {
  return a.dtype == b.dtype && a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim == b.head_dim && a.sliding_window == b.sliding_window;
}

template <class T>
std::span<const T> view_of(const std::vector<T>& values) {
  return values;
}

}  // namespace

AttentionPlan::AttentionPlan() {
  int device = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&compute_major_, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device));
  for (Staging& staging : staging_) staging.uploaded = make_event();
}

bool AttentionPlan::is_supported(const KvSpec& layer, ActivationKind activations) {
  return activations == ActivationKind::F16 && layer.num_heads > 0 && has_fa2(layer.head_dim, layer.dtype);
}

void AttentionPlan::reserve(const StepLimits& limits, const KvCache& cache) {
  find_kinds(cache);
  const auto sequences = static_cast<std::int64_t>(limits.max_sequences);
  std::int64_t lists = 3 * 4 * (sequences + 1), results = 0, widest = 0;
  for (const Planned& planned : planned_) {
    const KvSpec& layer = planned.layer;
    const AttentionHeads heads = heads_of(layer);
    const std::int32_t long_rows = prefill_tile_rows(layer.head_dim);
    const std::int64_t decode_tiles = fa2_max_tiles(sequences * div_up(heads.group_size(), kDecodeTileRows), heads,
                                                    num_slots(layer, kDecodeTileRows));
    const std::int64_t long_tiles = fa2_max_tiles(limits.max_tokens * heads.group_size() / long_rows + sequences, heads,
                                                  num_slots(layer, long_rows));
    const std::int64_t items = heads.num_heads * (limits.max_tokens / fa3_tile_rows(layer.head_dim) + sequences);
    // Three indices and a flag a tile, a row of merges a token, seven numbers an item of FA3; rounding of places.
    lists += 13 * (decode_tiles + long_tiles) + 8 * sequences + 12 * limits.max_tokens + 28 * items + 4096;
    const bool is_split = !has_fa3(layer.head_dim, layer.dtype, layer.sliding_window, compute_major_);
    const std::int64_t long_results = is_split ? std::int64_t{num_slots(layer, long_rows)} * long_rows * 3 / 2 : 0;
    results = std::max({results, decode_tiles * heads.num_heads, long_results});
    widest = std::max(widest, std::int64_t{layer.head_dim});
  }
  make_room(lists, results, results * widest);
  planned_.clear();
  num_tokens_ = 0;
}

void AttentionPlan::plan(const ForwardBatch& batch, const KvCache& cache, cudaStream_t stream) {
  make_lists(batch, cache);
  if (staged_.empty()) return;
  std::int64_t results = 0, elements = 0;
  for (const Planned& planned : planned_) {
    for (const auto& fa2 : {planned.decode, planned.prefill_fa2}) {
      if (!fa2) continue;
      results = std::max(results, fa2->num_partials * planned.layer.num_heads);
      elements = std::max(elements, fa2->num_partials * planned.layer.num_heads * planned.layer.head_dim);
    }
  }
  make_room(static_cast<std::int64_t>(staged_.size()), results, elements);
  upload(stream);
}

void AttentionPlan::find_kinds(const KvCache& cache) {
  planned_.clear();
  for (std::int64_t l = 0; l < cache.num_layers(); ++l) {
    const KvSpec& layer = cache.layer(l);
    if (!is_supported(layer, ActivationKind::F16)) continue;
    const auto is_known = [&](const Planned& planned) { return is_same_kind(planned.layer, layer); };
    if (std::ranges::none_of(planned_, is_known)) planned_.push_back({.layer = layer});
  }
}

void AttentionPlan::make_lists(const ForwardBatch& batch, const KvCache& cache) {
  staged_.clear();
  num_tokens_ = batch.num_tokens();
  num_sequences_ = static_cast<std::int32_t>(batch.num_sequences());
  is_decode_ = num_tokens_ == num_sequences_;
  block_table_stride_ = batch.block_table_stride;
  find_kinds(cache);
  if (planned_.empty() || num_tokens_ == 0) return;

  table_starts_.resize(static_cast<std::size_t>(num_sequences_) + 1);
  for (std::size_t s = 0; s < table_starts_.size(); ++s) {
    table_starts_[s] = static_cast<std::int32_t>(static_cast<std::int64_t>(s) * block_table_stride_);
  }
  table_start_ = place(view_of(table_starts_));
  query_start_ = place(batch.query_start);
  context_len_ = place(batch.context_len);
  for (Planned& planned : planned_) plan_layer(planned, batch, cache.block_size());
}

void AttentionPlan::plan_layer(Planned& planned, const ForwardBatch& batch, std::int32_t block_size) {
  const KvSpec& layer = planned.layer;
  short_.clear();
  long_.clear();
  for (std::int32_t s = 0; s < num_sequences_; ++s) {
    const auto sequence = static_cast<std::size_t>(s);
    const std::int32_t start = batch.query_start[sequence];
    const SequenceLengths lengths{s, start, batch.query_start[sequence + 1] - start, batch.context_len[sequence]};
    const bool is_short =
        is_decode_ || lengths.context_len == 0 || lengths.query_len * heads_of(layer).group_size() <= kDecodeTileRows;
    if (lengths.query_len > 0) (is_short ? short_ : long_).push_back(lengths);
  }
  if (!short_.empty()) planned.decode = plan_fa2(short_, layer, kDecodeTileRows, block_size);
  if (long_.empty()) return;
  if (has_fa3(layer.head_dim, layer.dtype, layer.sliding_window, compute_major_)) {
    planned.prefill_fa3 = plan_fa3(long_, layer);
  } else {
    planned.prefill_fa2 = plan_fa2(long_, layer, prefill_tile_rows(layer.head_dim), block_size);
  }
}

std::int32_t AttentionPlan::num_slots(const KvSpec& layer, std::int32_t tile_rows) const {
  return num_multiprocessors_ * fa2_blocks_per_multiprocessor(layer.head_dim, layer.dtype, tile_rows);
}

AttentionPlan::PlannedFa2 AttentionPlan::plan_fa2(std::span<const SequenceLengths> sequences, const KvSpec& layer,
                                                  std::int32_t tile_rows, std::int32_t block_size) {
  const bool is_decode_tile = tile_rows == kDecodeTileRows;
  const AttentionHeads heads = heads_of(layer);
  const Fa2Limits limits{.tile_rows = tile_rows,
                         .block_size = block_size,
                         .num_slots = num_slots(layer, tile_rows),
                         .min_chunk_len = is_decode_tile ? kMinDecodeChunk : kMinPrefillChunk,
                         .always_split = is_decode_tile,
                         .num_sequences = num_sequences_};
  schedule_fa2(sequences, heads, limits, fa2_);

  // The grid of a decode step, and with it the place of all that follows, hangs on the number of sequences alone.
  std::size_t num_tiles = fa2_.sequence.size();
  std::int64_t num_partials = fa2_.num_partials;
  if (is_decode_) {
    const std::int32_t most =
        fa2_max_tiles(num_sequences_ * div_up(heads.group_size(), tile_rows), heads, limits.num_slots);
    nibble::check(num_tiles <= static_cast<std::size_t>(most), "attention plan: more tiles than the grid has");
    num_tiles = static_cast<std::size_t>(most);
    num_partials = most;
  }
  std::vector<std::uint8_t> is_used(num_tiles, 0);
  std::fill_n(is_used.begin(), fa2_.sequence.size(), std::uint8_t{1});
  PlannedFa2 planned{.tile_rows = tile_rows, .num_tiles = static_cast<std::int32_t>(num_tiles)};
  planned.sequence = place(view_of(fa2_.sequence), num_tiles);
  planned.q_tile = place(view_of(fa2_.q_tile), num_tiles);
  planned.kv_chunk = place(view_of(fa2_.kv_chunk), num_tiles);
  planned.is_used = place(view_of(is_used));
  planned.chunk_len = place(std::span<const std::int32_t>(&fa2_.chunk_len, 1));
  planned.is_split = fa2_.is_split;
  if (fa2_.is_split) {
    planned.partial_start = place(view_of(fa2_.partial_start));
    planned.merge_rows = place(view_of(fa2_.merge_rows));
    planned.num_merge_rows = static_cast<std::int64_t>(fa2_.merge_rows.size());
    planned.num_partials = num_partials;
  }
  return planned;
}

AttentionPlan::PlannedFa3 AttentionPlan::plan_fa3(std::span<const SequenceLengths> sequences, const KvSpec& layer) {
  schedule_fa3(sequences, layer.num_heads, fa3_tile_rows(layer.head_dim), num_multiprocessors_, fa3_);
  std::vector<std::int32_t> table_start(fa3_.sequence.size());
  std::ranges::transform(fa3_.sequence, table_start.begin(),
                         [&](std::int32_t s) { return table_starts_[static_cast<std::size_t>(s)]; });
  return {.work_start = place(view_of(fa3_.work_start)),
          .q_tile = place(view_of(fa3_.q_tile)),
          .head = place(view_of(fa3_.head)),
          .sequence = place(view_of(fa3_.sequence)),
          .query_start = place(view_of(fa3_.query_start)),
          .query_len = place(view_of(fa3_.query_len)),
          .table_start = place(view_of(table_start)),
          .context_len = place(view_of(fa3_.context_len))};
}

/// Appends to the upload; room for `capacity` values where there are fewer, zeros.
template <class T>
std::size_t AttentionPlan::place(std::span<const T> values, std::size_t capacity) {
  const std::size_t begin = (staged_.size() + kListAlignment - 1) / kListAlignment * kListAlignment;
  staged_.resize(begin + std::max(values.size(), capacity) * sizeof(T));
  if (!values.empty()) std::memcpy(staged_.data() + begin, values.data(), values.size_bytes());
  return begin;
}

void AttentionPlan::make_room(std::int64_t list_bytes, std::int64_t results, std::int64_t elements) {
  const auto grow = [&](Buffer& buffer, std::int64_t needed) {
    const auto size_bytes = static_cast<std::size_t>(needed);
    if (buffer.size_bytes() >= size_bytes) return;
    buffer = device_buffer(std::max(size_bytes, 2 * buffer.size_bytes()));
    ++generation_;
  };
  grow(lists_, list_bytes);
  grow(partials_, elements * 2);
  grow(partial_sums_, results * 4);
}

void AttentionPlan::upload(cudaStream_t stream) {
  Staging& staging = staging_[next_staging_++ % staging_.size()];
  check(cudaEventSynchronize(staging.uploaded.get()));
  if (staging.host.size_bytes() < staged_.size()) staging.host = pinned_buffer(lists_.size_bytes());
  std::memcpy(staging.host.data(), staged_.data(), staged_.size());
  check(cudaMemcpyAsync(lists_.data(), staging.host.data(), staged_.size(), cudaMemcpyHostToDevice, stream));
  check(cudaEventRecord(staging.uploaded.get(), stream));
}

void AttentionPlan::run(const Activation& qkv, const AttentionSpec& spec, const CudaKvCache& cache,
                        std::int64_t layer_idx, const std::int32_t* block_table, Activation& out,
                        cudaStream_t stream) const {
  const KvSpec& layer = cache.layer(layer_idx);
  nibble::check(spec.num_heads == layer.num_heads && spec.num_kv_heads == layer.num_kv_heads &&
                    spec.head_dim == layer.head_dim && spec.sliding_window == layer.sliding_window,
                "attention: the layer's heads and window are those of its cache, which it is planned by");
  const auto planned =
      std::ranges::find_if(planned_, [&](const Planned& kind) { return is_same_kind(kind.layer, layer); });
  nibble::check(planned != planned_.end() && qkv.num_tokens == num_tokens_, "attention: the step is not planned");
  const bool is_scaled = layer.dtype == DType::F8E4M3;
  const PagedAttention attention{.q = qkv.values.view().data(),
                                 .q_stride = spec.q_width() + 2 * spec.kv_width(),
                                 .keys = cache.keys(layer_idx),
                                 .values = cache.values(layer_idx),
                                 .out = out.values.mutable_view().data(),
                                 .num_heads = spec.num_heads,
                                 .num_kv_heads = spec.num_kv_heads,
                                 .head_dim = spec.head_dim,
                                 .kv_dtype = layer.dtype,
                                 .block_size = cache.block_size(),
                                 .sliding_window = spec.sliding_window,
                                 .scale = spec.scale * (is_scaled ? layer.k_scale : 1),
                                 .v_scale = is_scaled ? layer.v_scale : 1,
                                 .num_tokens = num_tokens_,
                                 .num_sequences = num_sequences_,
                                 .block_table = block_table,
                                 .table_start = device<std::int32_t>(table_start_),
                                 .query_start = device<std::int32_t>(query_start_),
                                 .context_len = device<std::int32_t>(context_len_)};
  if (planned->decode) run_fa2_and_merge(attention, *planned->decode, stream);
  if (planned->prefill_fa2) run_fa2_and_merge(attention, *planned->prefill_fa2, stream);
  if (planned->prefill_fa3) {
    const PlannedFa3& fa3 = *planned->prefill_fa3;
    run_fa3(attention,
            {.work_start = device<std::int32_t>(fa3.work_start),
             .q_tile = device<std::int32_t>(fa3.q_tile),
             .head = device<std::int32_t>(fa3.head),
             .sequence = device<std::int32_t>(fa3.sequence),
             .query_start = device<std::int32_t>(fa3.query_start),
             .query_len = device<std::int32_t>(fa3.query_len),
             .table_start = device<std::int32_t>(fa3.table_start),
             .context_len = device<std::int32_t>(fa3.context_len)},
            stream);
  }
}

void AttentionPlan::run_fa2_and_merge(const PagedAttention& attention, const PlannedFa2& planned,
                                      cudaStream_t stream) const {
  Fa2Work work{.tile_rows = planned.tile_rows,
               .num_tiles = planned.num_tiles,
               .sequence = device<std::int32_t>(planned.sequence),
               .q_tile = device<std::int32_t>(planned.q_tile),
               .kv_chunk = device<std::int32_t>(planned.kv_chunk),
               .is_used = device<bool>(planned.is_used),
               .chunk_len = device<std::int32_t>(planned.chunk_len)};
  if (planned.is_split) {
    work.partial_start = device<std::int32_t>(planned.partial_start);
    work.partials = const_cast<void*>(partials_.data());
    work.partial_sums = static_cast<float*>(const_cast<void*>(partial_sums_.data()));
  }
  if (planned.num_tiles > 0) run_fa2(attention, work, stream);
  if (!planned.is_split) return;
  merge_partials({.rows = device<MergeRow>(planned.merge_rows),
                  .num_rows = planned.num_merge_rows,
                  .partials = work.partials,
                  .partial_sums = work.partial_sums,
                  .num_heads = attention.num_heads,
                  .head_dim = attention.head_dim,
                  .out = attention.out},
                 stream);
}

}  // namespace nibble::backend::cuda
