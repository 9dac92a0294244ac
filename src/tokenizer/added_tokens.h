#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/normalizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace nibble::tokenizer {

/// One entry of tokenizer.json's "added_tokens".
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  std::string normalized_content;  // what is searched for in normalized text
  bool single_word = false;        // not inside a word
  bool lstrip = false;             // takes the white space before it
  bool rstrip = false;             // and behind it
  bool normalized = false;         // searched for in the normalized text
  bool special = false;            // left out of decoded text
};

/// Finds the longest of many strings at a place. A trie with a table for the first byte: text without that byte costs
/// one look-up a byte.
class StringMatcher {
 public:
  StringMatcher();
  /// `key` is not empty. Of equal keys the first counts.
  void insert(std::string_view key, std::int32_t value);

  struct Match {
    std::size_t begin;
    std::size_t end;
    std::int32_t value;
  };
  /// The leftmost match at or behind `from`, of several there the longest.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  struct Node {
    std::int32_t value = kNone;
    std::int32_t first_child = kNone;
    std::int32_t next_sibling = kNone;
    char byte = 0;
  };
  static constexpr std::int32_t kNone = -1;

  std::int32_t child(std::int32_t node, char byte) const;

  std::vector<Node> nodes_;
  std::vector<std::int32_t> roots_;  // by first byte
};

/// Tokens that are found in the text before the model sees it. Immutable after construction, thread-safe.
class AddedTokens {
 public:
  AddedTokens() = default;
  /// Ids are given out as `tokenizers` does it, whatever "id" says: the vocabulary's where it has the content, else the
  /// next free one. Errors: Corrupt.
  AddedTokens(simdjson::dom::array entries, const Vocabulary& vocabulary, const Normalizer* normalizer);

  enum class Text : std::uint8_t { AsGiven, Normalized };

  /// Part of a text: an added token, or text between (`token` is null).
  struct Segment {
    std::string_view text;
    const AddedToken* token = nullptr;
  };
  /// Cuts `text` at the added tokens that are searched for in such a text: visit(Segment), empty texts left out.
  template <class Visit>
  void for_each_segment(std::string_view text, Text kind, SpecialTokens special, const Visit& visit) const {
    std::size_t end = 0;  // of what was visited
    const StringMatcher& matcher = kind == Text::AsGiven ? as_given_ : normalized_;
    for (std::size_t from = 0; const auto match = matcher.find(text, from);) {
      from = match->end;
      const AddedToken& token = tokens_[static_cast<std::size_t>(match->value)];
      const auto span = token_span(text, token, *match, end, special);
      if (!span) continue;
      if (end < span->begin) visit(Segment{text.substr(end, span->begin - end), nullptr});
      // White space that a token before has taken may leave nothing.
      if (span->begin < span->end) visit(Segment{text.substr(span->begin, span->end - span->begin), &token});
      end = span->end;
    }
    if (end < text.size()) visit(Segment{text.substr(end), nullptr});
  }

  const AddedToken* find(std::int32_t id) const;
  const AddedToken* find(std::string_view content) const;
  /// Largest id + 1, 0 where there are none.
  std::int32_t id_end() const { return static_cast<std::int32_t>(by_id_.size()); }

 private:
  struct Span {
    std::size_t begin;
    std::size_t end;
  };
  void add(AddedToken token);
  std::optional<Span> token_span(std::string_view text, const AddedToken& token, StringMatcher::Match match,
                                 std::size_t visited_end, SpecialTokens special) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::int32_t> by_id_;  // index into tokens_, -1 where there is none
  StringTable by_content_;
  StringMatcher as_given_;
  StringMatcher normalized_;
};

}  // namespace nibble::tokenizer
