#include "engine/block_manager.h"

#include <algorithm>
#include <ranges>

#include "core/error.h"

namespace nibble::engine {
namespace {

std::uint64_t hash_block(std::uint64_t parent_id, std::span<const std::int32_t> tokens) {
  std::uint64_t hash = parent_id * 0x9e3779b97f4a7c15u;
  for (const std::int32_t token : tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

BlockManager::BlockManager(std::int64_t num_blocks, std::int32_t block_size, bool enable_prefix_caching)
    : block_size_(block_size),
      enable_prefix_caching_(enable_prefix_caching),
      blocks_(static_cast<std::size_t>(num_blocks)) {
  for (auto block_idx = static_cast<std::int32_t>(num_blocks - 1); block_idx >= 0; --block_idx) {
    free_.push_back(block_idx);
  }
}

std::optional<std::int32_t> BlockManager::allocate() {
  std::int32_t block_idx = 0;
  if (!free_.empty()) {
    block_idx = free_.back();
    free_.pop_back();
  } else if (!evictable_.empty()) {
    block_idx = evictable_.front();
    evictable_.pop_front();
    forget(block_idx);
  } else {
    return std::nullopt;
  }
  at(block_idx).num_references = 1;
  return block_idx;
}

void BlockManager::release(std::span<const std::int32_t> blocks) {
  // Last block first: a chain is evicted from its end, so what stays cached remains reachable.
  for (const std::int32_t block_idx : std::ranges::reverse_view(blocks)) {
    Block& block = at(block_idx);
    check(block.num_references > 0, "KV block released more often than taken");
    if (--block.num_references > 0) continue;
    if (block.is_findable) {
      block.evictable_position = evictable_.insert(evictable_.end(), block_idx);
    } else {
      forget(block_idx);
      free_.push_back(block_idx);
    }
  }
}

std::vector<std::int32_t> BlockManager::match_prefix(std::span<const std::int32_t> tokens, std::int64_t max_blocks) {
  std::vector<std::int32_t> matched;
  if (!enable_prefix_caching_) return matched;
  num_queries_ += static_cast<std::int64_t>(tokens.size());
  std::uint64_t parent_id = 0;
  const auto size = static_cast<std::size_t>(block_size_);
  while (static_cast<std::int64_t>(matched.size()) < max_blocks && (matched.size() + 1) * size <= tokens.size()) {
    const auto found = find(parent_id, tokens.subspan(matched.size() * size, size));
    if (!found) break;
    take_reference(*found);
    matched.push_back(*found);
    parent_id = at(*found).content_id;
  }
  num_hits_ += static_cast<std::int64_t>(matched.size() * size);
  return matched;
}

void BlockManager::register_full_block(std::span<const std::int32_t> blocks, std::int64_t block_idx,
                                       std::span<const std::int32_t> tokens) {
  if (!enable_prefix_caching_) return;
  const auto index = static_cast<std::size_t>(block_idx);
  Block& block = at(blocks[index]);
  if (block.content_id != 0) return;
  block.parent_id = index == 0 ? 0 : at(blocks[index - 1]).content_id;
  check(index == 0 || block.parent_id != 0, "KV blocks are registered in order");
  const auto size = static_cast<std::size_t>(block_size_);
  const auto own_tokens = tokens.subspan(index * size, size);
  if (const auto older = find(block.parent_id, own_tokens)) {
    // Same content as a cached block: share its identity, so successors of both are found.
    block.content_id = at(*older).content_id;
    return;
  }
  block.content_id = next_content_id_++;
  block.tokens.assign(own_tokens.begin(), own_tokens.end());
  block.key = hash_block(block.parent_id, own_tokens);
  block.is_findable = true;
  by_key_.emplace(block.key, blocks[index]);
}

std::optional<std::int32_t> BlockManager::find(std::uint64_t parent_id, std::span<const std::int32_t> tokens) const {
  const auto [begin, end] = by_key_.equal_range(hash_block(parent_id, tokens));
  for (auto entry = begin; entry != end; ++entry) {
    const Block& block = at(entry->second);
    if (block.parent_id == parent_id && std::ranges::equal(block.tokens, tokens)) return entry->second;
  }
  return std::nullopt;
}

void BlockManager::take_reference(std::int32_t block_idx) {
  Block& block = at(block_idx);
  if (block.num_references++ == 0) evictable_.erase(block.evictable_position);
}

void BlockManager::forget(std::int32_t block_idx) {
  Block& block = at(block_idx);
  if (block.is_findable) {
    const auto [begin, end] = by_key_.equal_range(block.key);
    by_key_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == block_idx; }));
  }
  block.is_findable = false;
  block.content_id = 0;
  block.parent_id = 0;
  block.tokens.clear();
}

}  // namespace nibble::engine
