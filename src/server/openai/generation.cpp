#include "server/openai/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "core/log.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/sse.h"

namespace nibble::server::openai {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// A request while it runs. Created and submitted on a worker; from then on everything happens on the exchange's
/// strand, to which the engine's thread posts its outputs. The engine's sinks own it until the last output.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(Serving& serving, std::shared_ptr<Exchange> exchange, GenerationRequest request)
      : serving_(serving), exchange_(std::move(exchange)), request_(std::move(request)) {
    static std::atomic<std::uint64_t> next_number{0};
    const std::uint64_t number = next_number++;  // clients may choose equal ids
    choices_.resize(request_.prompts.size() * static_cast<std::size_t>(request_.num_choices));
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      choices_[i].index = static_cast<std::int64_t>(i);
      choices_[i].prompt = &request_.prompts[i / static_cast<std::size_t>(request_.num_choices)];
      choices_[i].engine_id = fmt::format("{}-{}", number, i);
    }
    last_output_.resize(choices_.size(), arrived_);
    num_unfinished_ = choices_.size();
  }

  void submit() {
    serving_.metrics.observe_request(request_.num_choices);
    exchange_->when_disconnected([weak = weak_from_this()] {
      if (auto self = weak.lock()) self->cancel();
    });
    std::size_t num_submitted = 0;
    try {
      for (; num_submitted < choices_.size(); ++num_submitted) serving_.engine.submit(engine_request(num_submitted));
    } catch (...) {
      for (std::size_t i = 0; i < num_submitted; ++i) serving_.engine.cancel(choices_[i].engine_id);
      exchange_->post([self = shared_from_this()] { self->is_failed_ = true; });
      throw;
    }
    exchange_->post([self = shared_from_this()] { self->on_submitted(); });
  }

 private:
  engine::Request engine_request(std::size_t index) {
    const Choice& choice = choices_[index];
    engine::Request request;
    request.id = choice.engine_id;
    request.prompt = choice.prompt->tokens;
    request.params = choice.prompt->params;
    // Children of one seeded request differ, and are the same again next time (as vLLM).
    if (request.params.seed) *request.params.seed += index % static_cast<std::size_t>(request_.num_choices);
    request.on_output = [self = shared_from_this(), index](engine::RequestOutput output) {
      self->exchange_->post(
          [self, index, produced = std::move(output)]() mutable { self->on_output(index, std::move(produced)); });
    };
    return request;
  }

  void cancel() {
    is_cancelled_ = true;
    for (const Choice& choice : choices_) {
      if (choice.finish_reason == engine::FinishReason::None) serving_.engine.cancel(choice.engine_id);
    }
  }

  void on_submitted() {
    if (is_cancelled_) cancel();  // the client left while its sequences were being submitted
    if (request_.stream.stream) start_stream();
  }

  void start_stream() {
    if (std::exchange(is_streaming_, true)) return;
    exchange_->start_stream(kEventStream);
  }

  void on_output(std::size_t index, engine::RequestOutput output) {
    if (is_failed_) return;
    Choice& choice = choices_[index];
    record(index, output);
    choice.num_output_tokens = request_.is_score_only ? 0 : output.num_output_tokens;
    choice.num_cached_tokens = output.num_cached_tokens;
    choice.finish_reason = output.finish_reason;
    if (output.stop_token) choice.stop_reason = *output.stop_token;
    if (!output.stop_string.empty()) choice.stop_reason = output.stop_string;
    const bool is_finished = output.finish_reason != engine::FinishReason::None;
    if (output.finish_reason == engine::FinishReason::Error) return fail(Error(output.error_code, output.error));
    if (is_finished) --num_unfinished_;
    if (request_.stream.stream) {
      stream_output(choice, output);
    } else {
      accumulate(choice, std::move(output));
    }
    if (num_unfinished_ == 0) complete();
  }

  void record(std::size_t index, const engine::RequestOutput& output) {
    const auto now = Clock::now();
    const Choice& choice = choices_[index];
    if (!output.tokens.empty()) {
      const double elapsed = seconds_between(last_output_[index], now);
      if (choice.num_output_tokens == 0) {
        serving_.metrics.observe_first_token(elapsed);
      } else {
        serving_.metrics.observe_inter_token(elapsed / static_cast<double>(output.tokens.size()));
      }
      last_output_[index] = now;
    }
    if (output.finish_reason == engine::FinishReason::None) return;
    serving_.metrics.observe_sequence({.finish_reason = output.finish_reason,
                                       .num_prompt_tokens = output.num_prompt_tokens,
                                       .num_output_tokens = output.num_output_tokens,
                                       .max_tokens = choice.prompt->params.max_tokens,
                                       .end_to_end_seconds = seconds_between(arrived_, now)});
  }

  static void accumulate(Choice& choice, engine::RequestOutput output) {
    choice.text += output.text;
    choice.tokens.insert(choice.tokens.end(), output.tokens.begin(), output.tokens.end());
    std::ranges::move(output.logprobs, std::back_inserter(choice.logprobs));
    std::ranges::move(output.prompt_logprobs, std::back_inserter(choice.prompt_logprobs));
  }

  void stream_output(Choice& choice, const engine::RequestOutput& output) {
    start_stream();
    std::string events;
    for (Json& entry : request_.format->stream_choices(choice, output)) {
      Json chunk = envelope(request_.format->chunk_name(), Json::array({std::move(entry)}));
      if (request_.stream.continuous_usage) {
        chunk["usage"] = usage(choice.prompt->tokens.size(), choice.num_output_tokens, choice.num_cached_tokens);
      }
      events += sse_event(chunk);
    }
    exchange_->write(std::move(events));
  }

  void complete() {
    if (!request_.stream.stream) {
      Json finished = Json::array();
      for (const Choice& choice : choices_) finished.push_back(request_.format->finished_choice(choice));
      Json answer = envelope(request_.format->object_name(), std::move(finished));
      answer["usage"] = total_usage();
      HttpResponse response;
      response.body = dump_json(answer);
      return exchange_->respond(std::move(response));
    }
    std::string events;
    if (request_.stream.include_usage) {
      Json chunk = envelope(request_.format->chunk_name(), Json::array());
      chunk["usage"] = total_usage();
      events = sse_event(chunk);
    }
    exchange_->write(events + sse_done());
    exchange_->finish();
  }

  void fail(const Error& error) {
    is_failed_ = true;
    cancel();
    log::error("{}: {}", request_.id, error.what());
    if (!is_streaming_) return exchange_->respond(error_response(error));
    exchange_->write(sse_event(error_json(error)) + sse_done());
    exchange_->finish();
  }

  Json envelope(const char* object, Json choices) const {
    return {{"id", request_.id},
            {"object", object},
            {"created", created_},
            {"model", serving_.model_name()},
            {"system_fingerprint", serving_.system_fingerprint},
            {"choices", std::move(choices)}};
  }

  Json usage(std::size_t num_prompt_tokens, std::int64_t num_output_tokens, std::int64_t num_cached_tokens) const {
    Json json = {{"prompt_tokens", num_prompt_tokens},
                 {"total_tokens", static_cast<std::int64_t>(num_prompt_tokens) + num_output_tokens},
                 {"completion_tokens", num_output_tokens}};
    if (serving_.options.enable_prompt_tokens_details) {
      json["prompt_tokens_details"] = {{"cached_tokens", num_cached_tokens}};
    }
    return json;
  }

  Json total_usage() const {
    std::size_t num_prompt_tokens = 0;
    for (const Prompt& prompt : request_.prompts) num_prompt_tokens += prompt.tokens.size();
    std::int64_t num_output_tokens = 0;
    std::int64_t num_cached_tokens = 0;
    for (const Choice& choice : choices_) {
      num_output_tokens += choice.num_output_tokens;
      num_cached_tokens += choice.num_cached_tokens;
    }
    return usage(num_prompt_tokens, num_output_tokens, num_cached_tokens);
  }

  Serving& serving_;
  std::shared_ptr<Exchange> exchange_;  // shared with whoever handles the request until it is submitted
  GenerationRequest request_;
  std::vector<Choice> choices_;
  std::vector<Clock::time_point> last_output_;  // of each choice; arrival before the first
  std::size_t num_unfinished_ = 0;
  Clock::time_point arrived_ = Clock::now();
  std::int64_t created_ = unix_seconds();
  bool is_cancelled_ = false;
  bool is_failed_ = false;
  bool is_streaming_ = false;
};

}  // namespace

void generate(Serving& serving, std::shared_ptr<Exchange> exchange, GenerationRequest request) {
  std::make_shared<Generation>(serving, std::move(exchange), std::move(request))->submit();
}

Json finish_reason_json(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::Stop: return "stop";
    case engine::FinishReason::Length: return "length";
    case engine::FinishReason::Abort: return "abort";
    case engine::FinishReason::Error: return "error";
    case engine::FinishReason::None: break;
  }
  return nullptr;
}

std::string make_request_id(const char* prefix, const HttpRequest& request, const Json& body) {
  std::string suffix;
  if (const auto header = request.header("X-Request-Id")) suffix = excerpt(*header, 128);
  if (suffix.empty()) suffix = excerpt(field_or<std::string>(body, "request_id", ""), 128);
  if (suffix.empty()) suffix = random_hex(32);
  return prefix + suffix;
}

}  // namespace nibble::server::openai
