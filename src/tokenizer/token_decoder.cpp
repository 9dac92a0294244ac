#include "tokenizer/token_decoder.h"

#include <fmt/format.h>

#include <charconv>

#include "tokenizer/byte_level.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

class JoinWithSpaces final : public TokenDecoder::Step {
 public:
  std::string apply(std::string token, TokenPosition position, RegexScratch&) const override {
    return position == TokenPosition::First ? token : " " + token;
  }
};

class ByteLevelStep final : public TokenDecoder::Step {
 public:
  std::string apply(std::string token, TokenPosition, RegexScratch&) const override {
    auto bytes = from_byte_level(token);
    return bytes ? std::move(*bytes) : token;
  }
};

class ReplaceStep final : public TokenDecoder::Step {
 public:
  explicit ReplaceStep(const ComponentJson& json) : regex_(parse_pattern(json)), content_(json.string("content")) {}

  std::string apply(std::string token, TokenPosition, RegexScratch& scratch) const override {
    return replace_matches(token, regex_, content_, scratch);
  }

 private:
  Regex regex_;
  std::string content_;
};

/// <0x41> is the byte 0x41.
class ByteFallbackStep final : public TokenDecoder::Step {
 public:
  std::string apply(std::string token, TokenPosition, RegexScratch&) const override {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return token;
    std::uint8_t byte = 0;
    const char* end = token.data() + 5;
    const auto result = std::from_chars(token.data() + 3, end, byte, 16);
    if (result.ec != std::errc{} || result.ptr != end) return token;
    return std::string(1, static_cast<char>(byte));
  }
};

/// Takes up to `start` and `stop` times `content` from the ends of every token, or, behind Fuse, of the text's first.
class StripStep final : public TokenDecoder::Step {
 public:
  enum class Of : std::uint8_t { EveryToken, FirstToken };

  StripStep(const ComponentJson& json, Of of) : of_(of), start_(json.integer("start")), stop_(json.integer("stop")) {
    append_utf8(content_, json.character("content"));
    if (start_ < 0 || stop_ < 0) json.fail(ErrorCode::Corrupt, "has a negative start or stop");
    if (of == Of::FirstToken && (start_ > 1 || stop_ > 0)) {
      json.fail(ErrorCode::Unsupported, "strips the fused text by more than one character at its start");
    }
  }

  std::string apply(std::string token, TokenPosition position, RegexScratch&) const override {
    if (of_ == Of::FirstToken && position != TokenPosition::First) return token;
    std::string_view rest = token;
    for (std::int64_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
    for (std::int64_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
    return std::string(rest);
  }

 private:
  Of of_;
  std::int64_t start_;
  std::int64_t stop_;
  std::string content_;
};

/// ▁ is a space, and nothing in the first token.
class MetaspaceStep final : public TokenDecoder::Step {
 public:
  explicit MetaspaceStep(const ComponentJson& json) {
    append_utf8(replacement_, json.character("replacement"));
    const bool is_never = json.find("prepend_scheme") && json.string("prepend_scheme") == "never";
    strips_first_ = !is_never && json.boolean_or("add_prefix_space", true);
  }

  std::string apply(std::string token, TokenPosition position, RegexScratch&) const override {
    std::string text;
    for (std::size_t at = 0; at < token.size();) {
      const bool is_space = std::string_view(token).substr(at).starts_with(replacement_);
      const std::size_t size = decode_utf8(token, at).size_bytes;
      if (!is_space) {
        text.append(token, at, size);
      } else if (position != TokenPosition::First || !strips_first_) {
        text += ' ';
      }
      at += size;
    }
    return text;
  }

 private:
  std::string replacement_;
  bool strips_first_ = true;
};

}  // namespace

TokenDecoder::TokenDecoder() {
  steps_.push_back(std::make_unique<JoinWithSpaces>());
}

TokenDecoder::TokenDecoder(const ComponentJson& json) {
  add(json);
}

void TokenDecoder::add(const ComponentJson& json) {
  const std::string_view type = json.type();
  if (type == "Sequence") {
    std::size_t i = 0;
    for (const auto element : json.array("decoders")) add({element, fmt::format("{}[{}]", json.place(), i++)});
    return;
  }
  if (type == "Strip") {
    steps_.push_back(
        std::make_unique<StripStep>(json, is_fused_ ? StripStep::Of::FirstToken : StripStep::Of::EveryToken));
    return;
  }
  if (type == "Fuse") {
    is_fused_ = true;
    return;
  }
  if (yields_bytes_ || is_fused_) {
    json.fail(ErrorCode::Unsupported, "follows a decoder that joins tokens; nibble reads only Fuse and Strip there");
  }
  if (type == "ByteLevel") {
    steps_.push_back(std::make_unique<ByteLevelStep>());
    is_fused_ = true;
  } else if (type == "Replace") {
    steps_.push_back(std::make_unique<ReplaceStep>(json));
  } else if (type == "ByteFallback") {
    steps_.push_back(std::make_unique<ByteFallbackStep>());
    yields_bytes_ = true;
  } else if (type == "Metaspace") {
    steps_.push_back(std::make_unique<MetaspaceStep>(json));
  } else {
    json.fail_unknown_type("Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip and Metaspace");
  }
}

std::string TokenDecoder::bytes(std::string token, TokenPosition position, RegexScratch& scratch) const {
  for (const auto& step : steps_) token = step->apply(std::move(token), position, scratch);
  return token;
}

}  // namespace nibble::tokenizer
