#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/request.h"

namespace nibble::server::openai {

/// How one finished sequence went; times in seconds since its request arrived.
struct SequenceRecord {
  engine::FinishReason finish_reason = engine::FinishReason::None;
  std::int64_t num_prompt_tokens = 0;
  std::int64_t num_output_tokens = 0;
  std::int64_t max_tokens = 0;
  double end_to_end_seconds = 0;
};

struct RouteLabel {
  std::string method;
  std::string path;
};

/// Prometheus metrics under vLLM's names, so that dashboards made for it work. Any thread.
class Metrics {
 public:
  explicit Metrics(const std::string& model_name);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void observe_request(std::int64_t num_choices);
  void observe_first_token(double seconds);
  void observe_inter_token(double seconds);
  void observe_sequence(const SequenceRecord& record);
  void observe_http(const RouteLabel& route, int status, double seconds);

  /// Everything in Prometheus' text format, the engine's counters included.
  std::string expose(const engine::EngineStats& stats) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server::openai
