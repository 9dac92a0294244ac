#include "engine/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace nibble::engine {
namespace {

std::vector<std::int32_t> counting(std::int32_t count, std::int32_t first = 0) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Blocks for `tokens`, all full ones registered.
std::vector<std::int32_t> fill(BlockManager& manager, const std::vector<std::int32_t>& tokens) {
  std::vector<std::int32_t> blocks;
  const auto size = static_cast<std::size_t>(manager.block_size());
  for (std::size_t i = 0; i * size < tokens.size(); ++i) blocks.push_back(*manager.allocate());
  for (std::size_t i = 0; (i + 1) * size <= tokens.size(); ++i) {
    manager.register_full_block(blocks, static_cast<std::int64_t>(i), tokens);
  }
  return blocks;
}

TEST(BlockManager, HandsOutEveryBlockOnce) {
  BlockManager manager(4, 16, true);
  std::vector<std::int32_t> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(*manager.allocate());
  EXPECT_THAT(blocks, testing::UnorderedElementsAre(0, 1, 2, 3));
  EXPECT_FALSE(manager.allocate().has_value());
  manager.release(blocks);
  EXPECT_EQ(manager.num_available(), 4);
}

TEST(BlockManager, FindsAPrefixAfterItsSequenceIsGone) {
  BlockManager manager(8, 4, true);
  const auto tokens = counting(10);
  const auto blocks = fill(manager, tokens);
  manager.release(blocks);
  EXPECT_EQ(manager.num_available(), 8);
  const auto matched = manager.match_prefix(tokens, 100);
  EXPECT_THAT(matched, testing::ElementsAre(blocks[0], blocks[1]));
  EXPECT_EQ(manager.num_available(), 6);
  manager.release(matched);
}

TEST(BlockManager, SharesABlockUntilTheLastReferenceIsGone) {
  BlockManager manager(2, 4, true);
  const auto tokens = counting(8);
  const auto blocks = fill(manager, tokens);
  const auto matched = manager.match_prefix(tokens, 1);
  ASSERT_THAT(matched, testing::ElementsAre(blocks[0]));
  manager.release(blocks);
  EXPECT_EQ(manager.num_available(), 1);  // block 0 is still referenced
  manager.release(matched);
  EXPECT_EQ(manager.num_available(), 2);
}

TEST(BlockManager, TheSameTokensAfterAnotherPrefixAreAnotherBlock) {
  BlockManager manager(8, 4, true);
  auto first = counting(8);
  auto second = counting(8);
  second[0] = 99;
  manager.release(fill(manager, first));
  EXPECT_EQ(manager.match_prefix(second, 100).size(), 0u);
  second = counting(8);
  second[5] = 99;
  EXPECT_EQ(manager.match_prefix(second, 100).size(), 1u);
}

TEST(BlockManager, EvictsTheLongestUnusedChainFromItsEnd) {
  BlockManager manager(4, 4, true);
  const auto old_tokens = counting(8);
  const auto new_tokens = counting(8, 100);
  manager.release(fill(manager, old_tokens));
  manager.release(fill(manager, new_tokens));
  const auto fresh = manager.allocate();
  ASSERT_TRUE(fresh.has_value());
  EXPECT_EQ(manager.match_prefix(old_tokens, 100).size(), 1u);  // its tail went first
  EXPECT_EQ(manager.match_prefix(new_tokens, 100).size(), 2u);
}

TEST(BlockManager, CachesNothingWhenToldSo) {
  BlockManager manager(4, 4, false);
  const auto tokens = counting(8);
  manager.release(fill(manager, tokens));
  EXPECT_TRUE(manager.match_prefix(tokens, 100).empty());
}

TEST(BlockManager, DuplicateContentKeepsTheOlderBlockFindable) {
  BlockManager manager(8, 4, true);
  const auto tokens = counting(8);
  const auto older = fill(manager, tokens);
  const auto younger = fill(manager, tokens);
  manager.release(younger);
  EXPECT_EQ(manager.match_prefix(tokens, 100), older);
}

}  // namespace
}  // namespace nibble::engine
