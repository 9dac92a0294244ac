#include "apps/nibble/serve_load.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "server/completion_client.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;
using server::StreamedCompletion;

double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

LatencyStatistics statistics_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  // Between neighbours, as numpy's percentile.
  const auto percentile = [&](double share) {
    const double place = share * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return std::lerp(values[below], values[above], place - static_cast<double>(below));
  };
  return {.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          .median = percentile(0.5),
          .p99 = percentile(0.99)};
}

/// The bodies of all requests: their making is no part of what is measured.
std::vector<std::string> make_bodies(const ServeLoad& load) {
  std::mt19937_64 random(load.seed);
  std::uniform_int_distribution<std::int64_t> token(0, load.vocab_size - 1);
  std::vector<std::string> bodies;
  for (std::int64_t i = 0; i < load.num_prompts; ++i) {
    Json prompt = Json::array();
    for (std::int64_t t = 0; t < load.input_len; ++t) prompt.push_back(token(random));
    const Json body = {{"model", load.model},
                       {"prompt", std::move(prompt)},
                       {"temperature", 0},
                       {"max_tokens", load.output_len},
                       {"ignore_eos", true},
                       {"stream", true},
                       {"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}}};
    bodies.push_back(body.dump());
  }
  return bodies;
}

std::vector<Clock::duration> make_arrivals(const ServeLoad& load) {
  std::vector<Clock::duration> arrivals(static_cast<std::size_t>(load.num_prompts));
  if (load.request_rate <= 0) return arrivals;
  std::mt19937_64 random(load.seed + 1);
  std::exponential_distribution<double> gap(load.request_rate);
  double seconds = 0;
  for (Clock::duration& arrival : arrivals) {
    arrival = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    seconds += gap(random);
  }
  return arrivals;
}

ServeLoadResult summarize(const std::vector<StreamedCompletion>& completions, std::vector<std::string> errors) {
  ServeLoadResult result;
  result.errors = std::move(errors);
  std::vector<double> ttft, tpot, itl, end_to_end;
  for (const StreamedCompletion& completion : completions) {
    ++result.num_completed;
    result.num_input_tokens += completion.num_prompt_tokens;
    result.num_output_tokens += completion.num_output_tokens;
    const Clock::time_point first = completion.chunks.front().arrived;
    const Clock::time_point last = completion.chunks.back().arrived;
    ttft.push_back(milliseconds(first - completion.sent));
    end_to_end.push_back(milliseconds(last - completion.sent));
    if (completion.num_output_tokens > 1) {
      tpot.push_back(milliseconds(last - first) / static_cast<double>(completion.num_output_tokens - 1));
    }
    for (std::size_t i = 1; i < completion.chunks.size(); ++i) {
      const server::CompletionChunk& chunk = completion.chunks[i];
      if (chunk.num_tokens <= 0) continue;  // one that only ends the stream
      const double elapsed = milliseconds(chunk.arrived - completion.chunks[i - 1].arrived);
      const auto count = static_cast<std::size_t>(chunk.num_tokens);
      itl.insert(itl.end(), count, elapsed / static_cast<double>(count));
    }
  }
  result.ttft = statistics_of(std::move(ttft));
  result.tpot = statistics_of(std::move(tpot));
  result.itl = statistics_of(std::move(itl));
  result.end_to_end = statistics_of(std::move(end_to_end));
  return result;
}

}  // namespace

ServeLoadResult run_serve_load(const ServeLoad& load) {
  const std::vector<std::string> bodies = make_bodies(load);
  const std::vector<Clock::duration> arrivals = make_arrivals(load);
  const std::chrono::seconds timeout(load.timeout_seconds);
  server::CompletionClient checks_address(load.base_url, timeout);
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::vector<StreamedCompletion> completions;
  std::vector<std::string> errors;
  const Clock::time_point start = Clock::now();
  const auto work = [&] {
    server::CompletionClient client(load.base_url, timeout);
    for (std::size_t i = next++; i < bodies.size(); i = next++) {
      std::this_thread::sleep_until(start + arrivals[i]);  // the arrival is the event that is waited for
      try {
        StreamedCompletion completion = client.stream("/v1/completions", bodies[i]);
        const std::lock_guard lock(mutex);
        completions.push_back(std::move(completion));
      } catch (const Error& error) {
        const std::lock_guard lock(mutex);
        errors.emplace_back(error.what());
      }
    }
  };
  {
    const std::int64_t limit = load.max_concurrency > 0 ? load.max_concurrency : load.num_prompts;
    std::vector<std::jthread> threads;
    for (std::int64_t i = 0; i < std::min(limit, load.num_prompts); ++i) threads.emplace_back(work);
  }
  const double duration = std::chrono::duration<double>(Clock::now() - start).count();
  ServeLoadResult result = summarize(completions, std::move(errors));
  result.duration_seconds = duration;
  return result;
}

std::string first_model(const std::string& base_url, std::int64_t timeout_seconds) {
  server::CompletionClient client(base_url, std::chrono::seconds(timeout_seconds));
  const Json models = client.get("/v1/models");
  const auto data = models.find("data");
  if (data == models.end() || !data->is_array() || data->empty()) {
    throw Error(ErrorCode::Unavailable, base_url + ": /v1/models names no model; give one with --model");
  }
  return get<std::string>(data->front(), "id");
}

}  // namespace nibble::apps
