#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::tokenizer {

/// Strings → ids, by open addressing over one buffer of text: 16 bytes and the text per entry.
class StringTable {
 public:
  /// Adds or, for a known `key`, replaces.
  void insert(std::string_view key, std::int32_t id);
  std::optional<std::int32_t> find(std::string_view key) const;
  std::size_t size() const { return num_entries_; }

 private:
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t size_bytes = 0;
    std::uint32_t begin = 0;  // in text_
    std::int32_t id = kEmpty;
  };
  static constexpr std::int32_t kEmpty = -1;

  std::size_t slot_of(std::string_view key, std::uint32_t hash) const;
  void grow();
  std::string_view key(const Slot& slot) const { return std::string_view(text_).substr(slot.begin, slot.size_bytes); }

  std::vector<Slot> slots_;
  std::string text_;
  std::size_t num_entries_ = 0;
};

/// The model's own tokens: both directions.
class Vocabulary {
 public:
  /// Ids beyond make tables too large for what any model has. Errors of insert: Corrupt.
  static constexpr std::int64_t kMaxId = (1 << 22) - 1;

  void insert(std::string_view token, std::int64_t id);
  std::optional<std::int32_t> find(std::string_view token) const { return ids_.find(token); }
  /// nullopt for an id without a token. Of several tokens with one id, the last.
  std::optional<std::string_view> token(std::int32_t id) const;
  std::size_t num_tokens() const { return ids_.size(); }
  /// Largest id + 1.
  std::int32_t id_end() const { return static_cast<std::int32_t>(spans_.size()); }

 private:
  struct Span {
    std::size_t begin = 0;
    std::size_t size_bytes = kAbsent;
  };
  static constexpr std::size_t kAbsent = static_cast<std::size_t>(-1);

  StringTable ids_;
  std::string text_;
  std::vector<Span> spans_;  // by id
};

}  // namespace nibble::tokenizer
