#include "eval/speed.h"

#include <chrono>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "core/error.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace nibble::eval {

double measure_decode(engine::Engine& engine, std::int64_t num_tokens) {
  using Clock = std::chrono::steady_clock;
  struct Timing {
    std::optional<Clock::time_point> first;
    std::int64_t num_first = 0;  // tokens of the first output
    std::promise<double> tokens_per_second;
  };
  // The second owner is the engine's thread, which may still be leaving set_value when the result is read here.
  const auto timing = std::make_shared<Timing>();
  engine::Request request;
  request.id = "eval-decode";
  request.prompt = engine.tokenizer().encode("The");
  request.params.temperature = 0;
  request.params.max_tokens = num_tokens + 1;  // the first one belongs to the prompt
  request.params.ignore_eos = true;
  request.on_output = [timing](const engine::RequestOutput& output) {
    if (!timing->first && output.num_output_tokens > 0) {
      timing->first = Clock::now();
      timing->num_first = output.num_output_tokens;
    }
    if (output.finish_reason == engine::FinishReason::None) return;
    if (output.finish_reason == engine::FinishReason::Error || !timing->first) {
      timing->tokens_per_second.set_exception(
          std::make_exception_ptr(Error(ErrorCode::Internal, "decoding failed: " + output.error)));
      return;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - *timing->first).count();
    timing->tokens_per_second.set_value(static_cast<double>(output.num_output_tokens - timing->num_first) / seconds);
  };
  auto tokens_per_second = timing->tokens_per_second.get_future();
  engine.submit(std::move(request));
  return tokens_per_second.get();
}

}  // namespace nibble::eval
