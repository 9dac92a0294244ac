#include "tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/component_json.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_processor.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/token_decoder.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

struct EncodeScratch {
  RegexScratch regex;
  Bpe::Scratch bpe;
};

/// Lends working memory (with its word cache of 1 MiB) to one encode at a time, so that threads share nothing but the
/// moment of taking it. Thread-safe.
class ScratchPool {
 public:
  class Lease {
   public:
    Lease(ScratchPool& pool, std::unique_ptr<EncodeScratch> scratch) : pool_(pool), scratch_(std::move(scratch)) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { pool_.give_back(std::move(scratch_)); }
    EncodeScratch& operator*() const { return *scratch_; }

   private:
    ScratchPool& pool_;
    std::unique_ptr<EncodeScratch> scratch_;
  };

  Lease take() {
    std::unique_ptr<EncodeScratch> scratch;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        scratch = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    return {*this, scratch ? std::move(scratch) : std::make_unique<EncodeScratch>()};
  }

 private:
  static constexpr std::size_t kMaxIdle = 16;

  void give_back(std::unique_ptr<EncodeScratch> scratch) {
    const std::lock_guard lock(mutex_);
    if (idle_.size() < kMaxIdle) idle_.push_back(std::move(scratch));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<EncodeScratch>> idle_;
};

/// Sends pieces to the model.
class EncodeSink final : public PieceSink {
 public:
  EncodeSink(const Bpe& bpe, Bpe::Scratch& scratch, std::vector<std::int32_t>& tokens)
      : bpe_(bpe), scratch_(scratch), tokens_(tokens) {}
  void add(Piece piece) override { bpe_.encode(piece.text, scratch_, tokens_); }

 private:
  const Bpe& bpe_;
  Bpe::Scratch& scratch_;
  std::vector<std::int32_t>& tokens_;
};

/// tokenizer_config.json holds a token as a string or as {"content": …}; "" where there is none.
std::string configured_token(const Json& tokenizer_config, const char* key) {
  if (!tokenizer_config.is_object()) return {};
  const auto token = tokenizer_config.find(key);
  if (token == tokenizer_config.end() || token->is_null()) return {};
  if (token->is_string()) return token->get<std::string>();
  if (token->is_object() && token->contains("content") && token->at("content").is_string()) {
    return token->at("content").get<std::string>();
  }
  throw Error(ErrorCode::Corrupt,
              fmt::format("tokenizer_config.json: \"{}\" is neither a string nor an object with \"content\"", key));
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(const ComponentJson& json, const Json& tokenizer_config)
      : normalizer_(json.find("normalizer") ? parse_normalizer(json.object("normalizer")) : nullptr),
        pre_tokenizers_(json.find("pre_tokenizer") ? PreTokenizerChain(json.object("pre_tokenizer"))
                                                   : PreTokenizerChain()),
        bpe_(json.object("model"), pre_tokenizers_.form()),
        decoder_(json.find("decoder") ? TokenDecoder(json.object("decoder")) : TokenDecoder()),
        bos_token_(configured_token(tokenizer_config, "bos_token")),
        eos_token_(configured_token(tokenizer_config, "eos_token")) {
    // "truncation" and "padding" are for batches of training samples: transformers resets them as well.
    if (json.find("added_tokens")) {
      added_ = AddedTokens(json.array("added_tokens"), bpe_.vocabulary(), normalizer_.get());
    }
    if (json.find("post_processor")) post_processor_ = parse_post_processor(json.object("post_processor"));
    index_token_bytes();
  }

  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens,
                                   SpecialTokens special) const override {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = replace_invalid_utf8(text);
      text = repaired;
    }
    const ScratchPool::Lease scratch = scratch_.take();
    (*scratch).regex.begin(text.size());
    std::vector<std::int32_t> tokens;
    if (add_special_tokens) tokens = post_processor_.prefix;
    added_.for_each_segment(text, AddedTokens::Text::AsGiven, special, [&](const AddedTokens::Segment& segment) {
      if (segment.token != nullptr) {
        tokens.push_back(segment.token->id);
      } else {
        encode_segment(segment.text, segment.text.data() == text.data(), special, *scratch, tokens);
      }
    });
    if (add_special_tokens) {
      tokens.insert(tokens.end(), post_processor_.suffix.begin(), post_processor_.suffix.end());
    }
    return tokens;
  }

  // Special tokens are known by id. tokenizers 0.23 compares the spelling and so keeps those that it normalizes.
  std::string decode(const std::vector<std::int32_t>& ids, bool skip_special_tokens) const override {
    std::string bytes;
    bool is_first = true;
    for (const std::int32_t id : ids) {
      if (!has_token(id) || (skip_special_tokens && is_special(id))) continue;
      if (is_first) {
        bytes += first_token_bytes(id);
      } else {
        bytes += bytes_of(id);
      }
      is_first = false;
    }
    return replace_invalid_utf8(bytes);
  }

  std::string token_bytes(std::int32_t id) const override { return std::string(bytes_of(id)); }

  std::string first_token_bytes(std::int32_t id) const override {
    if (!has_token(id)) return {};
    const ScratchPool::Lease scratch = scratch_.take();
    std::string token = id_to_token(id);
    (*scratch).regex.begin(token.size());
    return decoder_.bytes(std::move(token), TokenPosition::First, (*scratch).regex);
  }

  std::optional<std::int32_t> token_id(std::string_view token) const override {
    if (const AddedToken* added = added_.find(token)) return added->id;
    return bpe_.vocabulary().find(token);
  }

  std::string id_to_token(std::int32_t id) const override {
    if (const AddedToken* added = added_.find(id)) return added->content;
    return std::string(bpe_.vocabulary().token(id).value_or(""));
  }

  bool is_special(std::int32_t id) const override {
    const AddedToken* added = added_.find(id);
    return added != nullptr && added->special;
  }

  std::int64_t vocab_size() const override { return std::max(bpe_.vocabulary().id_end(), added_.id_end()); }

  std::optional<std::int32_t> bos_token_id() const override { return configured_id(bos_token_); }
  std::optional<std::int32_t> eos_token_id() const override { return configured_id(eos_token_); }
  std::string bos_token() const override { return bos_token_; }
  std::string eos_token() const override { return eos_token_; }

 private:
  /// Text without added tokens, but for those that are searched for in normalized text.
  void encode_segment(std::string_view text, bool is_text_begin, SpecialTokens special, EncodeScratch& scratch,
                      std::vector<std::int32_t>& tokens) const {
    std::string normalized;
    if (normalizer_) {
      normalized = normalizer_->apply(std::string(text), scratch.regex);
      text = normalized;
    }
    EncodeSink sink(bpe_, scratch.bpe, tokens);
    added_.for_each_segment(text, AddedTokens::Text::Normalized, special, [&](const AddedTokens::Segment& segment) {
      if (segment.token != nullptr) {
        tokens.push_back(segment.token->id);
      } else {
        const bool is_begin = is_text_begin && segment.text.data() == text.data();
        pre_tokenizers_.split({segment.text, is_begin}, scratch.regex, sink);
      }
    });
  }

  /// Decodes every token once, so that streaming costs a copy a token.
  void index_token_bytes() {
    RegexScratch scratch;
    scratch.begin(static_cast<std::size_t>(vocab_size()) * 16);
    token_begins_.reserve(static_cast<std::size_t>(vocab_size()) + 1);
    for (std::int32_t id = 0; id < vocab_size(); ++id) {
      token_begins_.push_back(token_text_.size());
      if (has_token(id)) token_text_ += decoder_.bytes(id_to_token(id), TokenPosition::Inside, scratch);
    }
    token_begins_.push_back(token_text_.size());
  }

  bool has_token(std::int32_t id) const { return added_.find(id) != nullptr || bpe_.vocabulary().token(id); }

  std::string_view bytes_of(std::int32_t id) const {
    if (id < 0 || id >= vocab_size()) return {};
    const auto index = static_cast<std::size_t>(id);
    return std::string_view(token_text_).substr(token_begins_[index], token_begins_[index + 1] - token_begins_[index]);
  }

  std::optional<std::int32_t> configured_id(const std::string& token) const {
    return token.empty() ? std::nullopt : token_id(token);
  }

  std::unique_ptr<Normalizer> normalizer_;
  PreTokenizerChain pre_tokenizers_;
  Bpe bpe_;
  AddedTokens added_;
  PostProcessor post_processor_;
  TokenDecoder decoder_;
  std::string bos_token_;
  std::string eos_token_;
  std::string token_text_;                 // decoded tokens by id, one behind the other
  std::vector<std::size_t> token_begins_;  // [vocab_size + 1]
  mutable ScratchPool scratch_;            // memory between calls, no state
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, const Json& tokenizer_config) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const simdjson::error_code problem = parser.parse(tokenizer_json.data(), tokenizer_json.size()).get(root);
  if (problem != simdjson::SUCCESS) {
    throw Error(ErrorCode::Corrupt,
                fmt::format("tokenizer.json: not valid JSON: {}", simdjson::error_message(problem)));
  }
  const ComponentJson json(root, "");
  if (json.find("version") && json.string("version") != "1.0") {
    json.fail(ErrorCode::Unsupported, fmt::format("has version \"{}\"; nibble reads 1.0", json.string("version")));
  }
  return std::make_unique<BpeTokenizer>(json, tokenizer_config);
}

}  // namespace nibble::tokenizer
