// GET /v1/models, /v1/models/NAME, /version, /health, /ping, /metrics
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

#include "server/openai/endpoints.h"
#include "server/sse.h"

namespace nibble::server::openai {
namespace {

void respond_json(Exchange& exchange, const Json& json) {
  HttpResponse response;
  response.body = dump_json(json);
  exchange.respond(std::move(response));
}

Json model_json(const std::string& name, const Serving& serving) {
  const Json permission = {{"id", "modelperm-" + random_hex(32)},
                           {"object", "model_permission"},
                           {"created", serving.created},
                           {"allow_create_engine", false},
                           {"allow_sampling", true},
                           {"allow_logprobs", true},
                           {"allow_search_indices", false},
                           {"allow_view", true},
                           {"allow_fine_tuning", false},
                           {"organization", "*"},
                           {"group", nullptr},
                           {"is_blocking", false}};
  return {{"id", name},
          {"object", "model"},
          {"created", serving.created},
          {"owned_by", "nibble"},
          {"root", serving.options.model_root},
          {"parent", nullptr},
          {"max_model_len", serving.engine.max_model_len()},
          {"permission", Json::array({permission})}};
}

/// "%2F" as "/"; what is no such triple stays as it is.
std::string percent_decode(std::string_view text) {
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() && std::from_chars(digits, digits + 2, value, 16).ptr == digits + 2) {
      decoded += static_cast<char>(value);
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

}  // namespace

void serve_model(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  constexpr std::string_view kFolder = "/v1/models/";
  const std::string name = percent_decode(std::string_view(exchange->request().path).substr(kFolder.size()));
  expect_served(name, serving);
  respond_json(*exchange, model_json(name, serving));
}

void serve_models(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  Json models = Json::array();
  for (const std::string& name : serving.options.served_model_names) models.push_back(model_json(name, serving));
  respond_json(*exchange, {{"object", "list"}, {"data", std::move(models)}});
}

void serve_version(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  respond_json(*exchange, {{"version", serving.options.version}});
}

void serve_health(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  HttpResponse response;
  response.status = serving.is_draining || serving.engine.failure() ? 503 : 200;
  response.content_type.clear();
  exchange->respond(std::move(response));
}

void serve_metrics(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = serving.metrics.expose(serving.engine.stats());
  exchange->respond(std::move(response));
}

}  // namespace nibble::server::openai
