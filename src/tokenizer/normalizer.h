#pragma once

#include <memory>
#include <string>

#include "tokenizer/component_json.h"
#include "tokenizer/regex.h"

namespace nibble::tokenizer {

/// A text → text step before splitting, as `tokenizers` has it. Immutable, thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string apply(std::string text, RegexScratch& scratch) const = 0;
};

/// Sequence, NFC, NFD, NFKC, NFKD, Replace, Prepend, Lowercase, Strip. Errors: Unsupported naming another type,
/// Corrupt.
std::unique_ptr<Normalizer> parse_normalizer(const ComponentJson& json);

/// {"String": …} or {"Regex": …}, as Replace and Split hold it under "pattern".
Regex parse_pattern(const ComponentJson& json);

/// `text` with every match replaced by `content` as it stands.
std::string replace_matches(std::string_view text, const Regex& regex, std::string_view content, RegexScratch& scratch);

}  // namespace nibble::tokenizer
