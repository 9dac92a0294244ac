#include "tokenizer/vocabulary.h"

#include <fmt/format.h>

#include <functional>
#include <limits>

#include "core/error.h"

namespace nibble::tokenizer {

namespace {
std::uint32_t hash_of(std::string_view key) {
  const std::size_t hash = std::hash<std::string_view>{}(key);
  return static_cast<std::uint32_t>(hash ^ (hash >> 32));
}
}  // namespace

void StringTable::insert(std::string_view key, std::int32_t id) {
  if ((num_entries_ + 1) * 2 > slots_.size()) grow();
  const std::uint32_t hash = hash_of(key);
  Slot& slot = slots_[slot_of(key, hash)];
  if (slot.id == kEmpty) {
    check(text_.size() + key.size() <= std::numeric_limits<std::uint32_t>::max(), "a vocabulary's text is below 4 GiB");
    slot = {hash, static_cast<std::uint32_t>(key.size()), static_cast<std::uint32_t>(text_.size()), id};
    text_.append(key);
    ++num_entries_;
  }
  slot.id = id;
}

std::optional<std::int32_t> StringTable::find(std::string_view key) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[slot_of(key, hash_of(key))];
  if (slot.id == kEmpty) return std::nullopt;
  return slot.id;
}

std::size_t StringTable::slot_of(std::string_view wanted, std::uint32_t hash) const {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.id == kEmpty || (slot.hash == hash && key(slot) == wanted)) return i;
  }
}

void StringTable::grow() {
  std::vector<Slot> old(slots_.empty() ? 64 : slots_.size() * 2);
  old.swap(slots_);
  const std::size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.id == kEmpty) continue;
    std::size_t i = slot.hash & mask;
    while (slots_[i].id != kEmpty) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

void Vocabulary::insert(std::string_view token, std::int64_t id) {
  if (id < 0 || id > kMaxId) {
    throw Error(
        ErrorCode::Corrupt,
        fmt::format("tokenizer.json: model.vocab: token \"{}\" has id {}; ids go from 0 to {}", token, id, kMaxId));
  }
  if (id >= id_end()) spans_.resize(static_cast<std::size_t>(id) + 1);
  spans_[static_cast<std::size_t>(id)] = {text_.size(), token.size()};
  text_.append(token);
  ids_.insert(token, static_cast<std::int32_t>(id));
}

std::optional<std::string_view> Vocabulary::token(std::int32_t id) const {
  if (id < 0 || id >= id_end()) return std::nullopt;
  const Span& span = spans_[static_cast<std::size_t>(id)];
  if (span.size_bytes == kAbsent) return std::nullopt;
  return std::string_view(text_).substr(span.begin, span.size_bytes);
}

}  // namespace nibble::tokenizer
