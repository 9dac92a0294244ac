#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "engine/engine.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace nibble::server {

/// A byte is a token (0 to 255), then <s>, </s>, <|im_start|> and <|im_end|>. encode adds <s> where asked.
class FakeTokenizer final : public tokenizer::Tokenizer {
 public:
  static constexpr std::int32_t kBos = 256;
  static constexpr std::int32_t kEos = 257;
  static constexpr std::int64_t kVocabSize = 260;

  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens,
                                   tokenizer::SpecialTokens special) const override;
  std::string decode(const std::vector<std::int32_t>& ids, bool skip_special_tokens) const override;
  std::string token_bytes(std::int32_t id) const override;
  std::optional<std::int32_t> token_id(std::string_view token) const override;
  std::string id_to_token(std::int32_t id) const override { return token_bytes(id); }
  bool is_special(std::int32_t id) const override { return id >= kBos; }
  std::int64_t vocab_size() const override { return kVocabSize; }
  std::optional<std::int32_t> bos_token_id() const override { return kBos; }
  std::optional<std::int32_t> eos_token_id() const override { return kEos; }
  std::string bos_token() const override { return "<s>"; }
  std::string eos_token() const override { return "</s>"; }
};

/// "role: content\n" for each message, tools as JSON, "assistant:" at the end; raises for the role "invalid".
class FakeChatTemplate final : public tokenizer::ChatTemplate {
 public:
  std::string render(const Json& messages, const Options& options) const override;
};

/// An engine without a model: token k of an answer is byte k of "echo:" + prompt, repeated for ever, a step for every
/// running request at a time on its own thread; after the first period (unless ignore_eos) it stops with EOS. Logprobs
/// are -(token % 8) / 8 with alternatives token + 1, …
class FakeEngine final : public engine::Engine {
 public:
  struct Options {
    std::int64_t max_model_len = 1024;
    std::chrono::microseconds step_time{0};
    std::size_t token_repeat = 1;  // every token's text is repeated: floods a connection
    std::int64_t fail_at_token = -1;
    ErrorCode fail_with = ErrorCode::Internal;
    std::optional<std::string> failure = {};  // a lost device
  };
  FakeEngine() : FakeEngine(Options()) {}
  explicit FakeEngine(Options options);
  ~FakeEngine() override;

  const models::ModelConfig& config() const override { return config_; }
  const tokenizer::Tokenizer& tokenizer() const override { return tokenizer_; }
  const Json& generation_config() const override { return generation_config_; }
  const Json& tokenizer_config() const override { return tokenizer_config_; }
  std::string chat_template_jinja() const override { return ""; }
  std::int64_t max_model_len() const override { return options_.max_model_len; }
  std::int64_t weight_bytes() const override { return 0; }
  std::int64_t checkpoint_bytes() const override { return 0; }
  std::string description() const override { return "fake"; }

  void submit(engine::Request request) override;
  void cancel(const std::string& id) override;
  void drain(double timeout_seconds) override;
  engine::EngineStats stats() const override;
  std::optional<std::string> failure() const override { return options_.failure; }
  void score(const std::vector<std::int32_t>& tokens,
             const std::function<void(const engine::LogitTile&)>& sink) override;

  /// Waits until no request runs; false where that takes more than ten seconds.
  bool wait_until_idle() const;
  /// Waits until that many requests have been cancelled; false as above.
  bool wait_until_cancelled(std::int64_t num_requests) const;
  /// Parameters of the last request submitted.
  engine::SamplingParams last_params() const;
  std::vector<std::int32_t> last_prompt() const;

 private:
  struct Running {
    engine::Request request;
    std::string script;  // what it answers
    std::string held;    // text that may begin a stop string or is half a character
    std::int64_t num_tokens = 0;
  };
  void run();
  /// One token of one request; whether it is finished by it.
  bool step(Running& running);

  Options options_;
  FakeTokenizer tokenizer_;
  models::ModelConfig config_;
  Json generation_config_;
  Json tokenizer_config_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::deque<std::unique_ptr<Running>> submitted_;
  std::unordered_set<std::string> cancelled_;
  std::int64_t num_running_ = 0;
  std::int64_t num_cancelled_ = 0;
  engine::SamplingParams last_params_;
  std::vector<std::int32_t> last_prompt_;
  bool is_draining_ = false;
  bool aborts_all_ = false;
  bool is_stopping_ = false;
  std::jthread thread_;
};

}  // namespace nibble::server
