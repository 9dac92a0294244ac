#pragma once

#include <simdjson.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"

namespace nibble::tokenizer {

/// One object of tokenizer.json (a normalizer, the model, …) and its place there ("" for the top),
/// which every error names. A view: the
/// simdjson parser outlives it. Absent and null are the same, as for serde's Option.
class ComponentJson {
 public:
  /// Errors: Corrupt unless `element` is an object.
  ComponentJson(simdjson::dom::element element, std::string place);

  const std::string& place() const { return place_; }
  /// Value of "type". Errors: Corrupt where it is missing.
  std::string_view type() const { return string("type"); }

  std::optional<simdjson::dom::element> find(std::string_view key) const;
  /// Errors of all below: Corrupt for a missing key or another type.
  ComponentJson object(std::string_view key) const;
  simdjson::dom::array array(std::string_view key) const;
  std::string_view string(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::int64_t integer(std::string_view key) const;

  bool boolean_or(std::string_view key, bool fallback) const { return find(key) ? boolean(key) : fallback; }
  /// A string of exactly one character.
  char32_t character(std::string_view key) const;

  [[noreturn]] void fail(ErrorCode code, std::string_view problem) const;
  /// Unsupported: this component's type is none that nibble reads; `readable` lists those.
  [[noreturn]] void fail_unknown_type(std::string_view readable) const;

 private:
  simdjson::dom::element required(std::string_view key) const;

  simdjson::dom::object object_;
  std::string place_;
};

}  // namespace nibble::tokenizer
