#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace nibble::engine {

/// Ids of the KV pool's blocks, with reference counts. Full blocks stay findable by their tokens after the last
/// reference is gone (prefix caching) until their memory is wanted. Bookkeeping only: it touches no KV memory. The
/// engine's thread calls it.
///
/// A cached block is found by (its predecessor's content id, its tokens), compared exactly: a hash collision can cost
/// time, never correctness (vLLM CVE-2025-25183).
class BlockManager {
 public:
  BlockManager(std::int64_t num_blocks, std::int32_t block_size, bool enable_prefix_caching);

  std::int32_t block_size() const { return block_size_; }
  std::int64_t num_blocks() const { return static_cast<std::int64_t>(blocks_.size()); }
  /// Free or only cached: what `allocate` can still hand out.
  std::int64_t num_available() const { return static_cast<std::int64_t>(free_.size() + evictable_.size()); }

  /// A block for the caller alone, reference count 1; evicts the longest unused cached block when no free one is left.
  std::optional<std::int32_t> allocate();
  /// Drops one reference of each block.
  void release(std::span<const std::int32_t> blocks);

  /// The longest run of cached full blocks that `tokens` begins with, references taken, at most `max_blocks`.
  std::vector<std::int32_t> match_prefix(std::span<const std::int32_t> tokens, std::int64_t max_blocks);
  /// Makes blocks[block_idx], now full with its part of `tokens`, findable. Earlier blocks of the sequence must have
  /// been registered. Where the same content is cached already, the older block stays the one that is found.
  void register_full_block(std::span<const std::int32_t> blocks, std::int64_t block_idx,
                           std::span<const std::int32_t> tokens);

  std::int64_t num_queries() const { return num_queries_; }  // tokens looked up
  std::int64_t num_hits() const { return num_hits_; }        // tokens found

 private:
  struct Block {
    std::int32_t num_references = 0;
    std::uint64_t content_id = 0;  // 0: not registered
    std::uint64_t parent_id = 0;
    std::uint64_t key = 0;
    std::vector<std::int32_t> tokens;
    std::list<std::int32_t>::iterator evictable_position;
    bool is_findable = false;
  };

  std::optional<std::int32_t> find(std::uint64_t parent_id, std::span<const std::int32_t> tokens) const;
  void take_reference(std::int32_t block_idx);
  void forget(std::int32_t block_idx);
  Block& at(std::int32_t block_idx) { return blocks_[static_cast<std::size_t>(block_idx)]; }
  const Block& at(std::int32_t block_idx) const { return blocks_[static_cast<std::size_t>(block_idx)]; }

  std::int32_t block_size_;
  bool enable_prefix_caching_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;     // stack: what was just used is warm
  std::list<std::int32_t> evictable_;  // unreferenced but findable, longest unused first
  std::unordered_multimap<std::uint64_t, std::int32_t> by_key_;
  std::uint64_t next_content_id_ = 1;
  std::int64_t num_queries_ = 0;
  std::int64_t num_hits_ = 0;
};

}  // namespace nibble::engine
