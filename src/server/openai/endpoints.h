#pragma once

#include <memory>

#include "server/http.h"
#include "server/openai/generation.h"
#include "server/openai/serving.h"

/// One function an endpoint: reads `exchange`'s request and answers it. Errors: RequestError and Error, which
/// routes.cpp turns into the API's error JSON.
namespace nibble::server::openai {

void serve_completions(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_chat_completions(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_models(Serving& serving, const std::shared_ptr<Exchange>& exchange);
/// The model that the path names behind /v1/models/, percent-encoded or not. Errors: RequestError 404.
void serve_model(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_tokenize(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_detokenize(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_health(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_version(Serving& serving, const std::shared_ptr<Exchange>& exchange);
void serve_metrics(Serving& serving, const std::shared_ptr<Exchange>& exchange);

/// Body → what to generate, all checks of the API made. Errors: RequestError.
GenerationRequest parse_completion(const Json& body, const Serving& serving);
GenerationRequest parse_chat_completion(const Json& body, const Serving& serving);

}  // namespace nibble::server::openai
