#include "engine/text_stream.h"

#include <algorithm>
#include <utility>

namespace nibble::engine {
namespace {

/// Length of the longest end of `text` that `stop` begins with, short of all of it.
std::size_t overlap(const std::string& text, const std::string& stop) {
  for (std::size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.compare(text.size() - length, length, stop, 0, length) == 0) return length;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(const tokenizer::Tokenizer& tokenizer, std::vector<std::string> stop, StopString stop_string,
                       bool skip_special_tokens)
    : decoder_(tokenizer, skip_special_tokens), stop_(std::move(stop)), mode_(stop_string) {}

std::string TextStream::add(std::int32_t token) {
  return release(decoder_.add(token));
}

std::string TextStream::finish() {
  std::string text = release(decoder_.finish());
  if (!met_) text += std::exchange(held_, {});
  return text;
}

std::string TextStream::release(std::string text) {
  held_ += text;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stop_) {
    const std::size_t position = held_.find(stop);
    if (position < first) {
      first = position;
      met_ = stop;
    }
  }
  if (met_) {
    held_.resize(first + (mode_ == StopString::Include ? met_->size() : 0));
    return std::exchange(held_, {});
  }
  std::size_t held_back = 0;
  for (const std::string& stop : stop_) held_back = std::max(held_back, overlap(held_, stop));
  std::string final_text = held_.substr(0, held_.size() - held_back);
  held_.erase(0, final_text.size());
  return final_text;
}

}  // namespace nibble::engine
