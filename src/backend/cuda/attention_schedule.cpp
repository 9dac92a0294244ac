#include "backend/cuda/attention_schedule.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

std::int64_t div_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t num_row_tiles(const SequenceLengths& lengths, const AttentionHeads& heads, std::int32_t tile_rows) {
  return div_up(std::int64_t{lengths.query_len} * heads.group_size(), tile_rows);
}

/// Tokens that a tile of rows sees at most: the kernel counts its chunks by the same formula.
std::int64_t visible_len(const SequenceLengths& lengths, const AttentionHeads& heads, std::int32_t tile_rows) {
  if (heads.sliding_window == 0) return lengths.context_len;
  return std::min<std::int64_t>(lengths.context_len, std::int64_t{heads.sliding_window} - 1 + tile_rows);
}

/// Tiles where contexts are cut into chunks of `chunk_len`.
std::int64_t count_tiles(std::span<const SequenceLengths> sequences, const AttentionHeads& heads,
                         std::int32_t tile_rows, std::int64_t chunk_len) {
  std::int64_t count = 0;
  for (const SequenceLengths& lengths : sequences) {
    count += num_row_tiles(lengths, heads, tile_rows) * div_up(visible_len(lengths, heads, tile_rows), chunk_len);
  }
  return count;
}

/// In cache blocks: the shortest chunk that keeps within the tiles allowed.
std::int64_t choose_chunk_blocks(std::span<const SequenceLengths> sequences, const AttentionHeads& heads,
                                 const Fa2Limits& limits) {
  std::int64_t row_tiles = 0, visible = 0, longest = 1;
  for (const SequenceLengths& lengths : sequences) {
    const std::int64_t tiles = num_row_tiles(lengths, heads, limits.tile_rows);
    const std::int64_t len = visible_len(lengths, heads, limits.tile_rows);
    row_tiles += len > 0 ? tiles : 0;
    visible += tiles * len;
    longest = std::max(longest, len);
  }
  const std::int64_t last = div_up(longest, limits.block_size);
  if (row_tiles == 0) return last;
  const bool is_full = row_tiles * heads.num_kv_heads >= limits.num_slots;
  if (is_full && !limits.always_split) return last;
  std::int64_t low =
      is_full ? div_up(2 * visible, row_tiles * limits.block_size) : div_up(limits.min_chunk_len, limits.block_size);
  const std::int64_t max_tiles = fa2_max_tiles(row_tiles, heads, limits.num_slots);
  std::int64_t high = std::max(low, last);
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (count_tiles(sequences, heads, limits.tile_rows, middle * limits.block_size) > max_tiles) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

std::int32_t fa2_max_tiles(std::int64_t num_row_tiles, const AttentionHeads& heads, std::int32_t num_slots) {
  // Chunks of twice the mean length make at most half as many again.
  return static_cast<std::int32_t>(
      std::max<std::int64_t>(num_slots / heads.num_kv_heads, num_row_tiles + num_row_tiles / 2));
}

void schedule_fa2(std::span<const SequenceLengths> sequences, const AttentionHeads& heads, const Fa2Limits& limits,
                  Fa2Schedule& schedule) {
  const std::int64_t chunk_len = choose_chunk_blocks(sequences, heads, limits) * limits.block_size;
  schedule.chunk_len = static_cast<std::int32_t>(chunk_len);
  schedule.sequence.clear();
  schedule.q_tile.clear();
  schedule.kv_chunk.clear();
  schedule.merge_rows.clear();
  schedule.partial_start.assign(static_cast<std::size_t>(limits.num_sequences), 0);
  schedule.num_partials = 0;
  schedule.is_split = limits.always_split;
  for (const SequenceLengths& lengths : sequences) {
    const auto num_chunks = static_cast<std::int32_t>(div_up(visible_len(lengths, heads, limits.tile_rows), chunk_len));
    if (num_chunks > 1) schedule.is_split = true;
    const std::int64_t row_tiles = num_row_tiles(lengths, heads, limits.tile_rows);
    for (std::int32_t q_tile = 0; q_tile < row_tiles; ++q_tile) {
      for (std::int32_t chunk = 0; chunk < num_chunks; ++chunk) {
        schedule.sequence.push_back(lengths.sequence);
        schedule.q_tile.push_back(q_tile);
        schedule.kv_chunk.push_back(chunk);
      }
    }
    schedule.partial_start[static_cast<std::size_t>(lengths.sequence)] = schedule.num_partials;
    for (std::int32_t token = 0; token < lengths.query_len; ++token) {
      schedule.merge_rows.push_back({lengths.query_start + token, schedule.num_partials, num_chunks});
      schedule.num_partials += num_chunks;
    }
  }
}

void schedule_fa3(std::span<const SequenceLengths> sequences, std::int32_t num_heads, std::int32_t tile_rows,
                  std::int32_t num_multiprocessors, Fa3Schedule& schedule) {
  struct Item {
    const SequenceLengths* lengths;
    std::int32_t q_tile;
    std::int64_t cost;
  };
  std::vector<Item> tiles;
  for (const SequenceLengths& lengths : sequences) {
    const auto num_tiles = static_cast<std::int32_t>(div_up(lengths.query_len, tile_rows));
    for (std::int32_t q_tile = 0; q_tile < num_tiles; ++q_tile) {
      const std::int64_t end = std::min<std::int64_t>(lengths.query_len, std::int64_t{q_tile + 1} * tile_rows);
      // Loading and storing a tile costs about as much as two keys for each of its rows.
      tiles.push_back({&lengths, q_tile, lengths.context_len - lengths.query_len + end + 2 * tile_rows});
    }
  }
  std::ranges::stable_sort(tiles, std::greater<>{}, &Item::cost);

  using Load = std::pair<std::int64_t, std::int32_t>;  // cost so far, multiprocessor
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (std::int32_t m = 0; m < num_multiprocessors; ++m) loads.emplace(0, m);
  std::vector<std::vector<std::pair<const Item*, std::int32_t>>> taken(static_cast<std::size_t>(num_multiprocessors));
  // Tile by tile, head by head: blocks that run at the same time share keys in the second-level cache.
  for (const Item& tile : tiles) {
    for (std::int32_t head = 0; head < num_heads; ++head) {
      const auto [cost, multiprocessor] = loads.top();
      loads.pop();
      loads.emplace(cost + tile.cost, multiprocessor);
      taken[static_cast<std::size_t>(multiprocessor)].emplace_back(&tile, head);
    }
  }

  for (auto* values : {&schedule.work_start, &schedule.q_tile, &schedule.head, &schedule.sequence,
                       &schedule.query_start, &schedule.query_len, &schedule.context_len}) {
    values->clear();
  }
  schedule.work_start.push_back(0);
  for (const auto& items : taken) {
    for (const auto& [item, head] : items) {
      schedule.q_tile.push_back(item->q_tile);
      schedule.head.push_back(head);
      schedule.sequence.push_back(item->lengths->sequence);
      schedule.query_start.push_back(item->lengths->query_start);
      schedule.query_len.push_back(item->lengths->query_len);
      schedule.context_len.push_back(item->lengths->context_len);
    }
    schedule.work_start.push_back(static_cast<std::int32_t>(schedule.q_tile.size()));
  }
}

}  // namespace nibble::backend::cuda
