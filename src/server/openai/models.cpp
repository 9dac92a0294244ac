// GET /v1/models, /version, /health, /ping, /metrics
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

}  // namespace

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
  response.status = serving.is_draining ? 503 : 200;
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
