#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/engine.h"

namespace nibble::eval {

/// One token a byte; no BOS unless it is told to add one.
class ByteTokenizer : public tokenizer::Tokenizer {
 public:
  explicit ByteTokenizer(std::int64_t vocab_size = 256, std::optional<std::int32_t> bos = std::nullopt)
      : vocab_size_(vocab_size), bos_(bos) {}
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens,
                                   tokenizer::SpecialTokens /*special*/) const override {
    std::vector<std::int32_t> ids;
    if (add_special_tokens && bos_) ids.push_back(*bos_);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(const std::vector<std::int32_t>& ids, bool /*skip_special_tokens*/) const override {
    std::string text;
    for (const std::int32_t id : ids) text += static_cast<char>(id);
    return text;
  }
  std::string token_bytes(std::int32_t id) const override { return std::string(1, static_cast<char>(id)); }
  std::optional<std::int32_t> token_id(std::string_view token) const override {
    return token.size() == 1 ? std::optional<std::int32_t>(static_cast<unsigned char>(token[0])) : std::nullopt;
  }
  std::string id_to_token(std::int32_t id) const override { return prefix_ + std::to_string(id); }
  bool is_special(std::int32_t id) const override { return bos_ == id; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::optional<std::int32_t> bos_token_id() const override { return bos_; }
  std::optional<std::int32_t> eos_token_id() const override { return std::nullopt; }
  std::string bos_token() const override { return ""; }
  std::string eos_token() const override { return ""; }
  void rename_tokens(std::string prefix) { prefix_ = std::move(prefix); }

 private:
  std::int64_t vocab_size_;
  std::optional<std::int32_t> bos_;
  std::string prefix_ = "byte ";
};

/// An engine whose logits are a function of the tokens up to a position. Hands them out in tiles of `tile_rows`, whose
/// memory is overwritten by the next tile.
class FakeEngine : public engine::Engine {
 public:
  /// Fills the logits of the token after `context`.
  using Logits = std::function<void(std::span<const std::int32_t> context, std::span<float> logits)>;

  FakeEngine(Logits logits, std::int64_t tile_rows = 4, ByteTokenizer tokenizer = ByteTokenizer())
      : logits_(std::move(logits)), tile_rows_(tile_rows), tokenizer_(std::move(tokenizer)) {
    config_.vocab_size = tokenizer_.vocab_size();
    config_.hidden_size = 8;
    config_.intermediate_size = 16;
    config_.num_hidden_layers = 1;
    config_.num_attention_heads = 2;
    config_.num_key_value_heads = 1;
    config_.head_dim = 4;
    config_.tie_word_embeddings = true;
  }

  const models::ModelConfig& config() const override { return config_; }
  const tokenizer::Tokenizer& tokenizer() const override { return tokenizer_; }
  const Json& generation_config() const override { return null_; }
  const Json& tokenizer_config() const override { return null_; }
  std::string chat_template_jinja() const override { return ""; }
  std::int64_t max_model_len() const override { return max_len; }
  std::int64_t weight_bytes() const override { return 2000; }
  std::int64_t checkpoint_bytes() const override { return 1000; }
  std::string description() const override { return "fake"; }
  void submit(engine::Request request) override {
    for (std::int64_t n = 1; n <= request.params.max_tokens; ++n) {
      engine::RequestOutput output;
      output.tokens = {0};
      output.num_output_tokens = n;
      if (n == request.params.max_tokens) output.finish_reason = engine::FinishReason::Length;
      request.on_output(std::move(output));
    }
  }
  void cancel(const std::string& /*id*/) override {}
  void drain(double /*timeout_seconds*/) override {}
  engine::EngineStats stats() const override { return {}; }

  void score(const std::vector<std::int32_t>& tokens,
             const std::function<void(const engine::LogitTile&)>& sink) override {
    scored.push_back(tokens);
    std::vector<float> tile(static_cast<std::size_t>(tile_rows_ * config_.vocab_size));
    const auto count = static_cast<std::int64_t>(tokens.size());
    for (std::int64_t first = 0; first < count; first += tile_rows_) {
      if (fail_at && first >= *fail_at) throw Error(ErrorCode::OutOfMemory, "the fake engine fails here");
      const std::int64_t rows = std::min(tile_rows_, count - first);
      const Matrix<float> logits{tile.data(), rows, config_.vocab_size, config_.vocab_size};
      for (std::int64_t r = 0; r < rows; ++r) {
        logits_(std::span(tokens).first(static_cast<std::size_t>(first + r + 1)), logits.row_span(r));
      }
      sink({first, logits});
    }
  }

  std::vector<std::vector<std::int32_t>> scored;  // what score was called with
  std::int64_t max_len = 4096;
  std::optional<std::int64_t> fail_at;  // position

 private:
  Logits logits_;
  std::int64_t tile_rows_;
  ByteTokenizer tokenizer_;
  models::ModelConfig config_;
  Json null_;
};

/// Every token as likely as any other.
inline FakeEngine::Logits uniform_logits() {
  return [](std::span<const std::int32_t>, std::span<float> logits) { std::ranges::fill(logits, 3.5f); };
}

/// Pseudo-random logits in [-4, 4] from the last two tokens and a seed.
inline FakeEngine::Logits random_logits(std::uint64_t seed) {
  return [seed](std::span<const std::int32_t> context, std::span<float> logits) {
    std::uint64_t state = seed * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(context.back()) * 257;
    if (context.size() > 1) state += static_cast<std::uint64_t>(context[context.size() - 2]) * 65537;
    for (float& logit : logits) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      logit = static_cast<float>(state >> 40) / static_cast<float>(1 << 24) * 8 - 4;
    }
  };
}

}  // namespace nibble::eval
