#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/component_json.h"
#include "tokenizer/merge_table.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_cache.h"
#include "tokenizer/word_merger.h"

namespace nibble::tokenizer {

/// Byte-pair encoding of pre-tokenized pieces, as the BPE model of `tokenizers`. Immutable, thread-safe.
class Bpe {
 public:
  /// Working memory; one thread uses it at a time, for one Bpe only.
  struct Scratch {
    WordCache cache;
    WordMerger merger;
  };

  /// `json` is tokenizer.json's "model"; `form`: what pieces are made of.
  /// Errors: Unsupported naming the model type or option; Corrupt for merges of absent tokens and bad fields.
  Bpe(const ComponentJson& json, PieceForm form);

  /// Appends the tokens of one piece.
  /// Errors: InvalidArgument beyond 512 MiB; Corrupt where a character is no token and unk_token neither.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& tokens) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  class SymbolWriter;
  static constexpr std::int32_t kNoToken = -1;
  using ByteTokens = std::array<std::int32_t, 256>;  // kNoToken where there is none

  void read_vocabulary(const ComponentJson& json);
  void read_merges(const ComponentJson& json);
  void index_bytes();
  std::optional<std::int32_t> whole_piece(std::string_view piece) const;
  void append_symbols(std::string_view piece, std::vector<std::int32_t>& symbols) const;

  PieceForm form_;
  Vocabulary vocabulary_;
  MergeTable merges_;
  bool ignore_merges_ = false;  // a piece that is a token stays whole
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  std::string unk_token_;  // "" where there is none
  std::optional<std::int32_t> unk_id_;
  StringTable pieces_;         // Bytes: tokens as the bytes they stand for (for ignore_merges)
  ByteTokens bytes_;           // Bytes: the token of each byte
  ByteTokens fallback_bytes_;  // <0x00> … <0xFF>
};

}  // namespace nibble::tokenizer
