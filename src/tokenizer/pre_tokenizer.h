#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "tokenizer/component_json.h"
#include "tokenizer/regex.h"

namespace nibble::tokenizer {

/// A piece of text on its way to the model, valid during the call that hands it over.
struct Piece {
  std::string_view text;
  bool is_text_begin = false;  // begins where the whole input begins
};

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void add(Piece piece) = 0;
};

/// Cuts a piece into smaller ones, which no merge will cross, and may rewrite them. Immutable, thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// Hands over the parts from left to right; empty ones are left out.
  virtual void split(Piece piece, RegexScratch& scratch, PieceSink& sink) const = 0;
};

/// What the pieces are made of.
enum class PieceForm : std::uint8_t {
  Characters,  // UTF-8 as the vocabulary spells it
  Bytes,       // bytes of the text, for a vocabulary spelt in the byte-level alphabet
};

/// The pre-tokenizers of a tokenizer.json, one behind the other. Where ByteLevel is the last, its alphabet is left out
/// and the pieces are plain bytes: the same tokens with less work.
class PreTokenizerChain {
 public:
  PreTokenizerChain() = default;
  /// Sequence, Split, ByteLevel, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation.
  /// Errors: Unsupported naming another type, Corrupt.
  explicit PreTokenizerChain(const ComponentJson& json);

  void split(Piece piece, RegexScratch& scratch, PieceSink& sink) const { split_from(0, piece, scratch, sink); }
  PieceForm form() const { return form_; }

 private:
  class Stage;
  void split_from(std::size_t stage, Piece piece, RegexScratch& scratch, PieceSink& sink) const;

  std::vector<std::unique_ptr<PreTokenizer>> stages_;
  PieceForm form_ = PieceForm::Characters;
};

}  // namespace nibble::tokenizer
