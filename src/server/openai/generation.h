#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "engine/request.h"
#include "server/http.h"
#include "server/openai/sampling.h"
#include "server/openai/serving.h"

namespace nibble::server::openai {

/// One prompt of a request; each of its `num_choices` choices shares it.
struct Prompt {
  std::vector<std::int32_t> tokens;
  std::string text;  // what echo puts in front; "" where nothing is echoed
  engine::SamplingParams params;
};

/// One sequence under way: what the engine has produced so far.
struct Choice {
  std::int64_t index = 0;  // prompt index * num_choices + number of the choice
  const Prompt* prompt = nullptr;
  std::string engine_id;
  std::string text;                                                  // whole answers only
  std::vector<std::int32_t> tokens;                                  // whole answers only
  std::vector<engine::TokenLogprob> logprobs;                        // whole answers only
  std::vector<std::optional<engine::TokenLogprob>> prompt_logprobs;  // whole answers only
  engine::FinishReason finish_reason = engine::FinishReason::None;
  Json stop_reason;  // null, the stop string or the stop token
  std::int64_t num_output_tokens = 0;
  std::int64_t num_cached_tokens = 0;
  bool has_started = false;      // streaming: its first chunk was made
  std::int64_t text_offset = 0;  // streaming: of the next logprobs entry
};

/// How an endpoint words what the engine produces. Used on one strand.
class AnswerFormat {
 public:
  virtual ~AnswerFormat() = default;
  virtual const char* object_name() const = 0;  // "chat.completion"
  virtual const char* chunk_name() const = 0;   // "chat.completion.chunk"
  virtual Json finished_choice(const Choice& choice) const = 0;
  /// The "choices" entries that one output adds to a stream, each its own chunk; none where there is nothing to say.
  virtual std::vector<Json> stream_choices(Choice& choice, const engine::RequestOutput& output) const = 0;
};

struct GenerationRequest {
  std::string id;  // "cmpl-…"
  StreamOptions stream;
  std::int64_t num_choices = 1;
  bool is_score_only = false;  // echo with max_tokens 0: the engine's one token is not part of the answer
  std::vector<Prompt> prompts;
  std::unique_ptr<AnswerFormat> format;
};

/// Hands every sequence to the engine and returns; the answer goes to `exchange` as it comes. When the client leaves,
/// its sequences are cancelled. Errors: what Engine::submit reports, as long as nothing has been answered.
void generate(Serving& serving, std::shared_ptr<Exchange> exchange, GenerationRequest request);

/// "length", "stop", "abort" or null.
Json finish_reason_json(engine::FinishReason reason);
/// `prefix` + the X-Request-Id header, else the body's request_id, else random hexadecimal digits.
std::string make_request_id(const char* prefix, const HttpRequest& request, const Json& body);

}  // namespace nibble::server::openai
