#include "tokenizer/split_behavior.h"

#include <fmt/format.h>

namespace nibble::tokenizer {

SplitBehavior parse_split_behavior(const ComponentJson& json) {
  const std::string_view name = json.string("behavior");
  if (name == "Isolated") return SplitBehavior::Isolated;
  if (name == "Removed") return SplitBehavior::Removed;
  if (name == "MergedWithPrevious") return SplitBehavior::MergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::MergedWithNext;
  if (name == "Contiguous") return SplitBehavior::Contiguous;
  json.fail(ErrorCode::Corrupt, fmt::format("has an unknown behavior \"{}\"", name));
}

void SplitEmitter::span(std::size_t begin, std::size_t end, bool is_match) {
  const Span span{begin, end};
  switch (behavior_) {
    case SplitBehavior::Isolated: emit(span); break;
    case SplitBehavior::Removed:
      if (!is_match) emit(span);
      break;
    case SplitBehavior::Contiguous:
      if (held_ && is_match == is_previous_match_) {
        held_->end = end;
      } else {
        hold(span);
      }
      break;
    case SplitBehavior::MergedWithPrevious:
      if (held_ && is_match && !is_previous_match_) {
        held_->end = end;
      } else {
        hold(span);
      }
      break;
    case SplitBehavior::MergedWithNext:
      if (held_ && !is_match) {  // only matches are held
        held_->end = end;
        finish();
      } else if (is_match) {
        hold(span);
      } else {
        emit(span);
      }
      break;
  }
  is_previous_match_ = is_match;
}

void SplitEmitter::finish() {
  if (held_) emit(*held_);
  held_.reset();
}

}  // namespace nibble::tokenizer
