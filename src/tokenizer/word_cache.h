#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace nibble::tokenizer {

/// Tokens of short words seen before: 16384 slots of a cache line each (1 MiB), a new word replaces what is in its
/// slot. One thread uses it at a time.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 23;
  static constexpr std::size_t kMaxTokens = 9;

  /// A word as the cache compares it: zero-padded, with its length in the last byte.
  struct Key {
    std::array<std::uint64_t, 3> words{};
    std::size_t slot = 0;
  };

  /// 1 <= word.size() <= kMaxWordBytes.
  static Key key(std::string_view word) {
    std::array<char, 24> bytes{};
    std::memcpy(bytes.data(), word.data(), word.size());
    bytes.back() = static_cast<char>(word.size());
    Key key;
    std::memcpy(key.words.data(), bytes.data(), bytes.size());
    std::uint64_t hash = key.words[0] * 0x9E3779B97F4A7C15;
    hash = (hash ^ (hash >> 32) ^ key.words[1]) * 0xBF58476D1CE4E5B9;
    hash = (hash ^ (hash >> 32) ^ key.words[2]) * 0x94D049BB133111EB;
    key.slot = static_cast<std::size_t>(hash >> (64 - kSlotBits));
    return key;
  }

  /// Appends the word's tokens and answers true where they are known.
  bool append(const Key& key, std::vector<std::int32_t>& tokens) const {
    const Slot& slot = slots_[key.slot];
    if (slot.words != key.words) return false;
    tokens.insert(tokens.end(), slot.tokens.begin(), slot.tokens.begin() + slot.num_tokens);
    return true;
  }

  /// Does nothing where there are too many tokens.
  void insert(const Key& key, std::span<const std::int32_t> tokens) {
    if (tokens.size() > kMaxTokens) return;
    Slot& slot = slots_[key.slot];
    slot.words = key.words;
    slot.num_tokens = static_cast<std::int32_t>(tokens.size());
    std::copy(tokens.begin(), tokens.end(), slot.tokens.begin());
  }

 private:
  struct Slot {
    std::array<std::uint64_t, 3> words{};  // all zero: empty, since a length is never zero
    std::array<std::int32_t, kMaxTokens> tokens{};
    std::int32_t num_tokens = 0;
  };
  static_assert(sizeof(Slot) == 64);
  static constexpr int kSlotBits = 14;

  std::vector<Slot> slots_ = std::vector<Slot>(std::size_t{1} << kSlotBits);
};

}  // namespace nibble::tokenizer
