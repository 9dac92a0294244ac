#include "apps/nibble/batch_speed.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// When each sequence's tokens arrived; filled on the engine's thread.
class Arrivals {
 public:
  explicit Arrivals(const BatchShape& shape)
      : times_(static_cast<std::size_t>(shape.batch_size)), running_(shape.batch_size) {
    for (auto& times : times_) times.reserve(static_cast<std::size_t>(shape.output_len));
  }

  void add(std::size_t sequence, const engine::RequestOutput& output) {
    const Clock::time_point now = Clock::now();
    const std::lock_guard lock(mutex_);
    if (!output.error.empty()) error_ = output.error;
    times_[sequence].insert(times_[sequence].end(), output.tokens.size(), now);
    if (output.finish_reason != engine::FinishReason::None && --running_ == 0) done_.notify_one();
  }

  /// [batch_size][output_len]. Errors: Internal when a request failed.
  std::vector<std::vector<Clock::time_point>> wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    if (!error_.empty()) throw Error(ErrorCode::Internal, error_);
    return std::move(times_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  std::string error_;
  std::vector<std::vector<Clock::time_point>> times_;
  std::int64_t running_;
};

struct Run {
  double latency_seconds = 0;
  double prefill_seconds = 0;
  double decode_step_seconds = 0;  // 0: at no time did all sequences decode
};

/// Only steps in which every sequence runs count as decoding at this batch size: from the last one's first token to the
/// first one's last. The sequence that ends first is the clock.
Run evaluate(Clock::time_point start, const std::vector<std::vector<Clock::time_point>>& times) {
  Clock::time_point all_started = start;
  Clock::time_point finished = start;
  const auto* first_to_end = &times.front();
  for (const auto& sequence : times) {
    all_started = std::max(all_started, sequence.front());
    finished = std::max(finished, sequence.back());
    if (sequence.back() < first_to_end->back()) first_to_end = &sequence;
  }
  Run run{.latency_seconds = seconds_between(start, finished), .prefill_seconds = seconds_between(start, all_started)};
  const auto begin = std::ranges::lower_bound(*first_to_end, all_started);
  const auto num_steps = first_to_end->end() - begin - 1;
  if (num_steps > 0) {
    run.decode_step_seconds = seconds_between(*begin, first_to_end->back()) / static_cast<double>(num_steps);
  }
  return run;
}

Run run_batch(engine::Engine& engine, const BatchShape& shape, std::mt19937& random) {
  Arrivals arrivals(shape);
  std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(engine.config().vocab_size - 1));
  std::vector<engine::Request> requests(static_cast<std::size_t>(shape.batch_size));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    engine::Request& request = requests[i];
    request.id = fmt::format("bench-{}", i);
    request.prompt.resize(static_cast<std::size_t>(shape.input_len));
    for (std::int32_t& id : request.prompt) id = token(random);
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = shape.output_len;
    request.on_output = [&arrivals, i](const engine::RequestOutput& output) { arrivals.add(i, output); };
  }
  const Clock::time_point start = Clock::now();
  for (engine::Request& request : requests) engine.submit(std::move(request));
  return evaluate(start, arrivals.wait());
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

BatchSpeed measure_batches(engine::Engine& engine, const BatchShape& shape, const BatchRepeats& repeats,
                           std::mt19937& random) {
  for (std::int64_t i = 0; i < repeats.warmup; ++i) run_batch(engine, shape, random);
  const std::int64_t preemptions_before = engine.stats().num_preemptions;
  std::vector<double> latency, prefill, step;
  for (std::int64_t i = 0; i < repeats.measured; ++i) {
    const Run run = run_batch(engine, shape, random);
    latency.push_back(run.latency_seconds);
    prefill.push_back(static_cast<double>(shape.batch_size * shape.input_len) / run.prefill_seconds);
    if (run.decode_step_seconds > 0) step.push_back(run.decode_step_seconds);
  }
  const double step_seconds = median(step);
  return {.latency_seconds = median(latency),
          .prefill_tokens_per_s = median(prefill),
          .decode_tokens_per_s = step_seconds > 0 ? static_cast<double>(shape.batch_size) / step_seconds : 0,
          .decode_step_seconds = step_seconds,
          .num_preemptions = engine.stats().num_preemptions - preemptions_before};
}

}  // namespace nibble::apps
