#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string IncrementalDecoder::add(std::int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  if (is_first_) {
    pending_ += tokenizer_->first_token_bytes(id);
    is_first_ = tokenizer_->id_to_token(id).empty();  // an id without a token does not count
  } else {
    pending_ += tokenizer_->token_bytes(id);
  }
  const std::size_t num_complete = pending_.size() - incomplete_utf8_suffix(pending_);
  std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, num_complete));
  pending_.erase(0, num_complete);
  return text;
}

std::string IncrementalDecoder::finish() {
  std::string text = replace_invalid_utf8(pending_);
  pending_.clear();
  is_first_ = true;
  return text;
}

}  // namespace nibble::tokenizer
