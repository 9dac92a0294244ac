#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "tokenizer/component_json.h"
#include "tokenizer/pre_tokenizer.h"

namespace nibble::tokenizer {

/// What becomes of the delimiters that a pattern matches ("-" in "the-final--countdown").
enum class SplitBehavior : std::uint8_t {
  Isolated,            // the - final - - countdown
  Removed,             // the final countdown
  MergedWithPrevious,  // the- final- - countdown
  MergedWithNext,      // the -final - -countdown
  Contiguous,          // the - final -- countdown
};

/// Reads "behavior". Errors: Corrupt.
SplitBehavior parse_split_behavior(const ComponentJson& json);

/// Turns the matched and unmatched spans of one piece, given from left to right and without gaps, into its parts.
class SplitEmitter {
 public:
  SplitEmitter(Piece piece, SplitBehavior behavior, PieceSink& sink)
      : piece_(piece), behavior_(behavior), sink_(sink) {}

  void span(std::size_t begin, std::size_t end, bool is_match);
  /// After the last span.
  void finish();

 private:
  struct Span {
    std::size_t begin;
    std::size_t end;
  };
  void hold(Span span) {
    finish();
    held_ = span;
  }
  void emit(Span span) {
    if (span.begin == span.end) return;
    sink_.add({piece_.text.substr(span.begin, span.end - span.begin), piece_.is_text_begin && span.begin == 0});
  }

  Piece piece_;
  SplitBehavior behavior_;
  PieceSink& sink_;
  std::optional<Span> held_;  // may still grow
  bool is_previous_match_ = false;
};

}  // namespace nibble::tokenizer
