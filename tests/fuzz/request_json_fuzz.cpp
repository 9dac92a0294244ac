// Bodies of API requests: every endpoint reads the bytes as its body, and an answer is worded for what it accepts.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/error.h"
#include "fake_engine.h"
#include "server/openai/endpoints.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/sse.h"

namespace nibble::server {
namespace {

openai::Serving& serving() {
  static FakeEngine engine;
  static openai::Serving shared = [] {
    openai::ApiOptions options;
    options.served_model_names = {"fake"};
    return openai::Serving(engine, std::make_unique<FakeChatTemplate>(), options);
  }();
  return shared;
}

engine::TokenLogprob logprob_of(std::int32_t token) {
  return {.token = token, .logprob = -1, .top = {{token, -1}}};
}

/// One output of every prompt's first choice, streamed and whole.
void word_answers(const openai::GenerationRequest& request) {
  for (const openai::Prompt& prompt : request.prompts) {
    engine::RequestOutput output;
    output.text = "x\xff";
    output.tokens = {255};
    output.finish_reason = engine::FinishReason::Length;
    if (prompt.params.num_logprobs >= 0) output.logprobs = {logprob_of(255)};
    if (prompt.params.num_prompt_logprobs >= 0) {
      for (const std::int32_t token : prompt.tokens) output.prompt_logprobs.emplace_back(logprob_of(token));
      output.prompt_logprobs.front().reset();
    }
    openai::Choice choice;
    choice.prompt = &prompt;
    for (const Json& entry : request.format->stream_choices(choice, output)) sse_event(entry);
    choice.text = output.text;
    choice.tokens = output.tokens;
    choice.logprobs = output.logprobs;
    choice.prompt_logprobs = output.prompt_logprobs;
    dump_json(request.format->finished_choice(choice));
  }
}

template <class Parse>
void try_endpoint(const HttpRequest& request, Parse parse) {
  try {
    const Json body = openai::parse_body(request);
    openai::check_model(body, serving());
    word_answers(parse(body, serving()));
  } catch (const Error& error) {
    openai::error_response(error);
  }
}

}  // namespace
}  // namespace nibble::server

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  using namespace nibble::server;
  HttpRequest request;
  request.headers = {{"Content-Type", "application/json"}};
  request.body.assign(reinterpret_cast<const char*>(input), size_bytes);
  try_endpoint(request, openai::parse_completion);
  try_endpoint(request, openai::parse_chat_completion);
  return 0;
}
