#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace nibble::engine {

/// Token ids of one sequence → text for its client: complete characters only, and nothing that may turn out to be the
/// beginning of a stop string. One thread uses it.
class TextStream {
 public:
  enum class StopString : std::uint8_t { Exclude, Include };

  TextStream(const tokenizer::Tokenizer& tokenizer, std::vector<std::string> stop, StopString stop_string,
             bool skip_special_tokens);

  /// Text that became final with this token. After a stop string was met, `stop_string()` tells which, and the text
  /// ends before (or, with Include, after) it.
  std::string add(std::int32_t token);
  /// What was held back, at the end of a sequence that met no stop string.
  std::string finish();
  const std::optional<std::string>& stop_string() const { return met_; }

 private:
  std::string release(std::string text);

  tokenizer::IncrementalDecoder decoder_;
  std::vector<std::string> stop_;
  StopString mode_;
  std::string held_;
  std::optional<std::string> met_;
};

}  // namespace nibble::engine
