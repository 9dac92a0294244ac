#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/component_json.h"
#include "tokenizer/regex.h"

namespace nibble::tokenizer {

/// Where a token stands in the text that is decoded: decoders take away the space of the first one.
enum class TokenPosition : std::uint8_t { First, Inside };

/// Turns a token as the vocabulary spells it into its bytes; text is the bytes of its tokens one behind the other, with
/// U+FFFD for what is no UTF-8 then. One difference from `tokenizers`, on purpose: its ByteFallback turns a whole run
/// of byte tokens into U+FFFD where the last character is cut off; here the whole characters stay, so that streaming
/// need not wait for the end of a run. Immutable, thread-safe.
class TokenDecoder {
 public:
  /// No "decoder": tokens with spaces between.
  TokenDecoder();
  /// Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace. Errors: Unsupported naming another type or an
  /// order that cannot be decoded token by token; Corrupt.
  explicit TokenDecoder(const ComponentJson& json);

  std::string bytes(std::string token, TokenPosition position, RegexScratch& scratch) const;

  class Step {
   public:
    virtual ~Step() = default;
    virtual std::string apply(std::string token, TokenPosition position, RegexScratch& scratch) const = 0;
  };

 private:
  void add(const ComponentJson& json);

  std::vector<std::unique_ptr<Step>> steps_;
  // While reading: the steps so far give bytes that need not be characters; give one string.
  bool yields_bytes_ = false;
  bool is_fused_ = false;
};

}  // namespace nibble::tokenizer
