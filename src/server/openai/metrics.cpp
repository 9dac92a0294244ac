#include "server/openai/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::server::openai {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;
using Labels = std::map<std::string, std::string>;

// vLLM's buckets, so that quantiles of both can be compared.
const Buckets kFirstTokenSeconds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kInterTokenSeconds = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
const Buckets kLatencySeconds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kHttpSeconds = {.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};
const Buckets kTokenCounts = {1,    2,    5,    10,    20,    50,    100,    200,    500,
                              1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};
const Buckets kNumChoices = {1, 2, 5, 10, 20};

const char* label(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::Stop: return "stop";
    case engine::FinishReason::Length: return "length";
    case engine::FinishReason::Abort: return "abort";
    case engine::FinishReason::Error:
    case engine::FinishReason::None: break;
  }
  return "error";
}

prometheus::MetricFamily family(std::string name, std::string help, prometheus::MetricType type, double value,
                                const Labels& labels) {
  prometheus::ClientMetric metric;
  for (const auto& [key, text] : labels) metric.label.push_back({key, text});
  metric.gauge.value = value;
  metric.counter.value = value;
  return {std::move(name), std::move(help), type, {std::move(metric)}};
}

}  // namespace

struct Metrics::Impl {
  explicit Impl(const std::string& model_name) : labels{{"model_name", model_name}, {"engine", "0"}} {}

  prometheus::Histogram& histogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Labels(labels).Register(registry).Add({}, buckets);
  }

  Labels labels;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& success = prometheus::BuildCounter()
                                                         .Name("vllm:request_success_total")
                                                         .Help("Count of successfully processed requests.")
                                                         .Labels(labels)
                                                         .Register(registry);
  prometheus::Family<prometheus::Counter>& http_requests =
      prometheus::BuildCounter().Name("http_requests_total").Help("Count of HTTP requests.").Register(registry);
  prometheus::Family<prometheus::Histogram>& http_seconds = prometheus::BuildHistogram()
                                                                .Name("http_request_duration_seconds")
                                                                .Help("Time from request to complete answer.")
                                                                .Register(registry);
  prometheus::Histogram& first_token =
      histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", kFirstTokenSeconds);
  prometheus::Histogram& inter_token =
      histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", kInterTokenSeconds);
  prometheus::Histogram& end_to_end =
      histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", kLatencySeconds);
  prometheus::Histogram& prompt_tokens =
      histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", kTokenCounts);
  prometheus::Histogram& generation_tokens =
      histogram("vllm:request_generation_tokens", "Number of generation tokens processed.", kTokenCounts);
  prometheus::Histogram& max_tokens =
      histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", kTokenCounts);
  prometheus::Histogram& num_choices =
      histogram("vllm:request_params_n", "Histogram of the n request parameter.", kNumChoices);
};

Metrics::Metrics(const std::string& model_name) : impl_(std::make_unique<Impl>(model_name)) {}
Metrics::~Metrics() = default;

void Metrics::observe_request(std::int64_t num_choices) {
  impl_->num_choices.Observe(static_cast<double>(num_choices));
}

void Metrics::observe_first_token(double seconds) {
  impl_->first_token.Observe(seconds);
}

void Metrics::observe_inter_token(double seconds) {
  impl_->inter_token.Observe(seconds);
}

void Metrics::observe_sequence(const SequenceRecord& record) {
  impl_->success.Add({{"finished_reason", label(record.finish_reason)}}).Increment();
  impl_->end_to_end.Observe(record.end_to_end_seconds);
  impl_->prompt_tokens.Observe(static_cast<double>(record.num_prompt_tokens));
  impl_->generation_tokens.Observe(static_cast<double>(record.num_output_tokens));
  impl_->max_tokens.Observe(static_cast<double>(record.max_tokens));
}

void Metrics::observe_http(const RouteLabel& route, int status, double seconds) {
  const std::string status_class = std::to_string(status / 100) + "xx";
  impl_->http_requests.Add({{"method", route.method}, {"status", status_class}, {"handler", route.path}}).Increment();
  impl_->http_seconds.Add({{"method", route.method}, {"handler", route.path}}, kHttpSeconds).Observe(seconds);
}

std::string Metrics::expose(const engine::EngineStats& stats) const {
  std::vector<prometheus::MetricFamily> families = impl_->registry.Collect();
  const auto add = [&](const char* name, const char* help, prometheus::MetricType type, double value) {
    families.push_back(family(name, help, type, value, impl_->labels));
  };
  const auto gauge = [&](const char* name, const char* help, double value) {
    add(name, help, prometheus::MetricType::Gauge, value);
  };
  const auto counter = [&](const char* name, const char* help, std::int64_t value) {
    add(name, help, prometheus::MetricType::Counter, static_cast<double>(value));
  };
  const std::int64_t num_used_blocks = stats.num_kv_blocks - stats.num_free_kv_blocks;
  const double usage =
      stats.num_kv_blocks == 0 ? 0 : static_cast<double>(num_used_blocks) / static_cast<double>(stats.num_kv_blocks);
  gauge("vllm:num_requests_running", "Number of requests in model execution batches.",
        static_cast<double>(stats.num_running));
  gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.",
        static_cast<double>(stats.num_waiting));
  gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage);
  gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc.", usage);
  counter("vllm:num_preemptions_total", "Cumulative number of preemptions.", stats.num_preemptions);
  counter("vllm:prompt_tokens_total", "Number of prefill tokens processed.", stats.prompt_tokens);
  counter("vllm:generation_tokens_total", "Number of generation tokens processed.", stats.generation_tokens);
  counter("vllm:prefix_cache_queries_total", "Prefix cache queries, in tokens.", stats.prefix_cache_queries);
  counter("vllm:prefix_cache_hits_total", "Prefix cache hits, in tokens.", stats.prefix_cache_hits);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace nibble::server::openai
