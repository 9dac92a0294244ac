#include "fake_engine.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"
#include "tokenizer/utf8.h"

namespace nibble::server {
namespace {

constexpr std::array<std::string_view, 4> kSpecial = {"<s>", "</s>", "<|im_start|>", "<|im_end|>"};

engine::TokenLogprob logprob_of(std::int32_t token, std::int32_t num_logprobs) {
  engine::TokenLogprob logprob;
  logprob.token = token;
  logprob.logprob = -static_cast<float>(token % 8) / 8;
  for (std::int32_t i = 0; i < num_logprobs; ++i) {
    logprob.top.emplace_back(token + i, logprob.logprob - static_cast<float>(i));
  }
  return logprob;
}

/// Bytes at the end of `text` that begin one of the stop strings.
std::size_t num_held_back(const std::string& text, const std::vector<std::string>& stop) {
  std::size_t longest = tokenizer::incomplete_utf8_suffix(text);
  for (const std::string& candidate : stop) {
    for (std::size_t n = std::min(candidate.size() - 1, text.size()); n > longest; --n) {
      if (text.ends_with(candidate.substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

std::vector<std::int32_t> FakeTokenizer::encode(std::string_view text, bool add_special_tokens,
                                                tokenizer::SpecialTokens special) const {
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids.push_back(kBos);
  for (std::size_t i = 0; i < text.size();) {
    const auto found =
        std::ranges::find_if(kSpecial, [&](std::string_view s) { return text.substr(i).starts_with(s); });
    if (special == tokenizer::SpecialTokens::Parse && found != kSpecial.end()) {
      ids.push_back(kBos + static_cast<std::int32_t>(found - kSpecial.begin()));
      i += found->size();
    } else {
      ids.push_back(static_cast<unsigned char>(text[i++]));
    }
  }
  return ids;
}

std::string FakeTokenizer::decode(const std::vector<std::int32_t>& ids, bool skip_special_tokens) const {
  std::string text;
  for (const std::int32_t id : ids) {
    if (!(skip_special_tokens && is_special(id))) text += token_bytes(id);
  }
  return tokenizer::replace_invalid_utf8(text);
}

std::string FakeTokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= kVocabSize) return "";
  if (id < kBos) return std::string(1, static_cast<char>(id));
  return std::string(kSpecial[static_cast<std::size_t>(id - kBos)]);
}

std::optional<std::int32_t> FakeTokenizer::token_id(std::string_view token) const {
  const auto found = std::ranges::find(kSpecial, token);
  if (found == kSpecial.end()) return std::nullopt;
  return kBos + static_cast<std::int32_t>(found - kSpecial.begin());
}

std::string FakeChatTemplate::render(const Json& messages, const Options& options) const {
  std::string text;
  if (!options.tools.is_null()) text += "tools " + options.tools.dump() + "\n";
  if (!options.extra_kwargs.is_null()) text += "kwargs " + options.extra_kwargs.dump() + "\n";
  for (const Json& message : messages) {
    if (message["role"] == "invalid") throw Error(ErrorCode::InvalidArgument, "chat template: no such role");
    text += message["role"].get<std::string>() + ": " + message["content"].get<std::string>() + "\n";
  }
  if (options.add_generation_prompt) text += "assistant:";
  return text;
}

FakeEngine::FakeEngine(Options options) : options_(std::move(options)) {
  config_.model_type = "fake";
  config_.vocab_size = FakeTokenizer::kVocabSize;
  thread_ = std::jthread([this] { run(); });
}

FakeEngine::~FakeEngine() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  changed_.notify_all();
}

void FakeEngine::submit(engine::Request request) {
  {
    const std::lock_guard lock(mutex_);
    if (options_.failure) throw Error(ErrorCode::Unavailable, *options_.failure);
    if (is_draining_) throw Error(ErrorCode::Unavailable, "draining");
    last_params_ = request.params;
    last_prompt_ = request.prompt;
    auto running = std::make_unique<Running>();
    running->script = "echo:" + tokenizer_.decode(request.prompt, true);
    running->request = std::move(request);
    submitted_.push_back(std::move(running));
    ++num_running_;
  }
  changed_.notify_all();
}

void FakeEngine::cancel(const std::string& id) {
  const std::lock_guard lock(mutex_);
  cancelled_.insert(id);
}

void FakeEngine::drain(double timeout_seconds) {
  std::unique_lock lock(mutex_);
  is_draining_ = true;
  const auto is_idle = [&] { return num_running_ == 0; };
  if (!changed_.wait_for(lock, std::chrono::duration<double>(timeout_seconds), is_idle)) aborts_all_ = true;
  changed_.notify_all();
  changed_.wait(lock, is_idle);
}

engine::EngineStats FakeEngine::stats() const {
  const std::lock_guard lock(mutex_);
  engine::EngineStats stats;
  stats.num_running = num_running_;
  stats.num_kv_blocks = 100;
  stats.num_free_kv_blocks = 100 - num_running_;
  return stats;
}

void FakeEngine::score(const std::vector<std::int32_t>& /*tokens*/,
                       const std::function<void(const engine::LogitTile&)>& /*sink*/) {
  throw Error(ErrorCode::Unsupported, "the fake engine does not score");
}

bool FakeEngine::wait_until_idle() const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return num_running_ == 0; });
}

bool FakeEngine::wait_until_cancelled(std::int64_t num_requests) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return num_cancelled_ >= num_requests; });
}

engine::SamplingParams FakeEngine::last_params() const {
  const std::lock_guard lock(mutex_);
  return last_params_;
}

std::vector<std::int32_t> FakeEngine::last_prompt() const {
  const std::lock_guard lock(mutex_);
  return last_prompt_;
}

void FakeEngine::run() {
  std::deque<std::unique_ptr<Running>> active;
  for (;;) {
    std::unordered_set<std::string> cancelled;
    bool aborts_all = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return is_stopping_ || !submitted_.empty() || !active.empty(); });
      if (is_stopping_) return;
      std::ranges::move(submitted_, std::back_inserter(active));
      submitted_.clear();
      cancelled.swap(cancelled_);
      aborts_all = aborts_all_;
    }
    std::this_thread::sleep_for(options_.step_time);
    std::int64_t num_aborted = 0;
    const auto num_finished = std::erase_if(active, [&](const std::unique_ptr<Running>& running) {
      if (!aborts_all && !cancelled.contains(running->request.id)) return step(*running);
      ++num_aborted;
      engine::RequestOutput output;
      output.finish_reason = engine::FinishReason::Abort;
      output.num_prompt_tokens = static_cast<std::int64_t>(running->request.prompt.size());
      output.num_output_tokens = running->num_tokens;
      running->request.on_output(std::move(output));
      return true;
    });
    {
      const std::lock_guard lock(mutex_);
      num_running_ -= static_cast<std::int64_t>(num_finished);
      num_cancelled_ += num_aborted;
    }
    changed_.notify_all();
  }
}

bool FakeEngine::step(Running& running) {
  const engine::SamplingParams& params = running.request.params;
  engine::RequestOutput output;
  output.num_prompt_tokens = static_cast<std::int64_t>(running.request.prompt.size());
  if (running.num_tokens == 0 && params.num_prompt_logprobs >= 0) {
    for (const std::int32_t token : running.request.prompt) {
      output.prompt_logprobs.emplace_back(logprob_of(token, params.num_prompt_logprobs));
    }
    output.prompt_logprobs.front().reset();
  }
  const auto position = static_cast<std::size_t>(running.num_tokens);
  const bool is_over = position >= running.script.size();
  const char byte = running.script[position % running.script.size()];
  const std::int32_t token = is_over && !params.ignore_eos ? FakeTokenizer::kEos : static_cast<unsigned char>(byte);
  output.num_output_tokens = ++running.num_tokens;
  output.tokens = {token};
  if (params.num_logprobs >= 0) output.logprobs.push_back(logprob_of(token, params.num_logprobs));

  const bool is_eos = token == FakeTokenizer::kEos;
  if (!is_eos) running.held += std::string(options_.token_repeat, byte);
  for (const std::string& stop : params.stop) {
    if (const auto found = running.held.find(stop); found != std::string::npos) {
      running.held.resize(found);
      output.stop_string = stop;
      output.finish_reason = engine::FinishReason::Stop;
      break;
    }
  }
  const bool is_stop_token = std::ranges::find(params.stop_token_ids, token) != params.stop_token_ids.end();
  if (is_stop_token) output.stop_token = token;
  if (is_eos || is_stop_token) output.finish_reason = engine::FinishReason::Stop;
  if (running.num_tokens == options_.fail_at_token) {
    output.finish_reason = engine::FinishReason::Error;
    output.error = "logits are not finite";
    output.error_code = options_.fail_with;
  }
  const bool is_stopped = output.finish_reason != engine::FinishReason::None;
  if (!is_stopped && running.num_tokens >= params.max_tokens) output.finish_reason = engine::FinishReason::Length;
  const bool is_finished = output.finish_reason != engine::FinishReason::None;
  const std::size_t num_held = is_finished ? 0 : num_held_back(running.held, params.stop);
  output.text = tokenizer::replace_invalid_utf8(running.held.substr(0, running.held.size() - num_held));
  running.held.erase(0, running.held.size() - num_held);
  running.request.on_output(std::move(output));
  return is_finished;
}

}  // namespace nibble::server
