#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// Which thread block takes which part of a step's attention: plain arithmetic over lengths, on the host, for the
/// kernels of flashinfer_attention.h.
namespace nibble::backend::cuda {

/// One sequence of a step. context_len counts its cached tokens, the step's own included; 0 where the sequence only
/// pads the batch.
struct SequenceLengths {
  std::int32_t sequence = 0;     // index in the batch
  std::int32_t query_start = 0;  // its first token
  std::int32_t query_len = 0;
  std::int32_t context_len = 0;
};

/// Heads of a layer and what it sees of the context.
struct AttentionHeads {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t sliding_window = 0;  // 0: all

  std::int32_t group_size() const { return num_heads / num_kv_heads; }
};

/// A result made of partial ones: out row `row` (a token, all heads) = merge of partials [first, first + count).
struct MergeRow {
  std::int32_t row = 0;
  std::int32_t first = 0;
  std::int32_t count = 0;  // 0: nothing was attended to, the row is zero
};

/// Work of the FA2 kernel; see Fa2Work. A tile of rows by a chunk of the context each; the first rows of a sequence
/// first, a row's chunks one after another.
struct Fa2Schedule {
  std::vector<std::int32_t> sequence;       // [num_tiles]
  std::vector<std::int32_t> q_tile;         // [num_tiles]
  std::vector<std::int32_t> kv_chunk;       // [num_tiles]
  std::vector<std::int32_t> partial_start;  // [num_sequences of the batch]
  std::vector<MergeRow> merge_rows;         // one for every token of its sequences
  std::int32_t chunk_len = 0;               // tokens
  std::int32_t num_partials = 0;            // rows of [num_heads, head_dim]
  bool is_split = false;                    // false: partial_start and merge_rows say nothing

  std::int32_t num_tiles() const { return static_cast<std::int32_t>(sequence.size()); }
};

struct Fa2Limits {
  std::int32_t tile_rows = 0;
  std::int32_t block_size = 0;  // of the cache: chunks are whole blocks
  std::int32_t num_slots = 0;   // thread blocks that the device runs at a time
  std::int32_t min_chunk_len = 0;
  bool always_split = false;       // every row goes through a merge: grids that do not depend on lengths
  std::int32_t num_sequences = 0;  // of the batch
};

/// Tiles for the most thread blocks that `fa2_max_tiles` allows. Long contexts are split so that the device is full
/// where rows alone do not fill it; where they do, only what is twice as long as the mean is, with always_split.
void schedule_fa2(std::span<const SequenceLengths> sequences, const AttentionHeads& heads, const Fa2Limits& limits,
                  Fa2Schedule& schedule);

/// The most tiles that schedule_fa2 makes of `num_row_tiles` tiles of rows, whatever the contexts.
std::int32_t fa2_max_tiles(std::int64_t num_row_tiles, const AttentionHeads& heads, std::int32_t num_slots);

/// Work of the FA3 kernel; see Fa3Work.
struct Fa3Schedule {
  std::vector<std::int32_t> work_start;  // [num_multiprocessors + 1]
  std::vector<std::int32_t> q_tile;      // [num_items], like the ones below
  std::vector<std::int32_t> head;
  std::vector<std::int32_t> sequence;  // index in the batch
  std::vector<std::int32_t> query_start;
  std::vector<std::int32_t> query_len;
  std::vector<std::int32_t> context_len;
};

/// Longest item first, each to the multiprocessor with the least so far.
void schedule_fa3(std::span<const SequenceLengths> sequences, std::int32_t num_heads, std::int32_t tile_rows,
                  std::int32_t num_multiprocessors, Fa3Schedule& schedule);

}  // namespace nibble::backend::cuda
