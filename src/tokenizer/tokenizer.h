#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace nibble::tokenizer {

/// Whether text that spells a special token ("<|im_end|>") becomes that token.
enum class SpecialTokens : std::uint8_t {
  Parse,   // as Hugging Face: rendered chat templates, prompts
  AsText,  // user content that must not inject control tokens
};

/// Text ↔ token ids, as the `tokenizers` library does for the same tokenizer.json. Immutable, thread-safe.
class Tokenizer {
 public:
  /// `tokenizer_json` is the file's text; `tokenizer_config` the parsed tokenizer_config.json or null.
  /// Errors: Unsupported naming the component (normalizer, pre-tokenizer, model type), Corrupt, InvalidArgument.
  static std::unique_ptr<Tokenizer> from_json(std::string_view tokenizer_json, const Json& tokenizer_config = nullptr);
  virtual ~Tokenizer() = default;

  /// `add_special_tokens` runs the post-processor (BOS and so on). Invalid UTF-8 is replaced by U+FFFD.
  virtual std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true,
                                           SpecialTokens special = SpecialTokens::Parse) const = 0;
  /// Bytes that are no valid UTF-8 become U+FFFD. Ids outside the vocabulary are skipped.
  virtual std::string decode(const std::vector<std::int32_t>& ids, bool skip_special_tokens = true) const = 0;

  /// Raw bytes of one token as it appears inside text (byte-level decoded; "" for an id without a token).
  virtual std::string token_bytes(std::int32_t id) const = 0;
  /// The same for the first token of a text, which may lose a space that the pre-tokenizer put there.
  virtual std::string first_token_bytes(std::int32_t id) const { return token_bytes(id); }
  virtual std::optional<std::int32_t> token_id(std::string_view token) const = 0;
  virtual std::string id_to_token(std::int32_t id) const = 0;  // vocabulary form, "Ġthe"
  virtual bool is_special(std::int32_t id) const = 0;
  virtual std::int64_t vocab_size() const = 0;  // largest id + 1, added tokens included

  virtual std::optional<std::int32_t> bos_token_id() const = 0;
  virtual std::optional<std::int32_t> eos_token_id() const = 0;
  virtual std::string bos_token() const = 0;  // "" where there is none
  virtual std::string eos_token() const = 0;
};

/// Turns ids into text as they arrive, never emitting half a character: bytes of an incomplete UTF-8 sequence wait for
/// the next token. The concatenation of all pieces equals `decode` of all ids. One thread uses it.
class IncrementalDecoder {
 public:
  explicit IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  /// Text that became complete with this token; often "".
  std::string add(std::int32_t id);
  /// What is left at the end of a sequence: an incomplete character as U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool is_first_ = true;
  std::string pending_;
};

}  // namespace nibble::tokenizer
