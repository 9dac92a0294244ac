#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "engine/engine.h"
#include "server/openai/metrics.h"
#include "server/openai/unknown_fields.h"
#include "tokenizer/chat_template.h"

namespace nibble::server::openai {

/// What the command line decides about the API; names as vLLM's flags.
struct ApiOptions {
  std::vector<std::string> served_model_names;  // at least one; the first is echoed in answers
  std::string model_root;                       // path or name as given, for /v1/models
  std::string version;                          // of nibble
  std::string response_role = "assistant";
  Json generation_config = nullptr;  // sampling defaults: contents of generation_config.json, or null for the API's own
  std::int64_t max_logprobs = 20;    // -1: no cap
  bool enable_prompt_tokens_details = false;
  bool enable_force_include_usage = false;
};

/// What a request gets where it says nothing: generation_config.json over the API's defaults.
struct SamplingDefaults {
  double temperature = 1;
  double top_p = 1;
  std::int64_t top_k = 0;
  double min_p = 0;
  double repetition_penalty = 1;
  std::optional<std::int64_t> max_new_tokens;  // also a cap for every request
  std::vector<std::string> overridden;         // "temperature=0.6", …: what the file changed
};

/// Errors: InvalidArgument naming the key of generation_config.json.
SamplingDefaults sampling_defaults(const Json& generation_config);

/// What every endpoint shares. Any thread; constant once it serves, but for the last three.
struct Serving {
  /// `engine` must outlive this. Errors: as sampling_defaults.
  Serving(engine::Engine& served_engine, std::unique_ptr<tokenizer::ChatTemplate> template_of_model,
          ApiOptions api_options);

  const tokenizer::Tokenizer& tokenizer() const { return engine.tokenizer(); }
  std::int64_t vocab_size() const { return engine.config().vocab_size; }
  const std::string& model_name() const { return options.served_model_names.front(); }

  engine::Engine& engine;
  std::unique_ptr<tokenizer::ChatTemplate> chat_template;
  ApiOptions options;
  SamplingDefaults defaults;
  std::string system_fingerprint;  // "nibble-<version>-<hash8>"
  std::int64_t created;            // Unix seconds
  std::int64_t max_prompt_bytes;   // a longer text cannot fit the context, whatever its tokens
  std::atomic<bool> is_draining{false};
  Metrics metrics;
  UnknownFields unknown_fields;
};

/// Checks the request's "model" field: absent, null and "" mean the served one. Errors: RequestError 404.
void check_model(const Json& body, const Serving& serving);
/// Errors: RequestError 404 for a name under which nothing is served.
void expect_served(const std::string& model, const Serving& serving);

/// Random hexadecimal digits. Any thread.
std::string random_hex(int num_digits);
std::int64_t unix_seconds();

}  // namespace nibble::server::openai
