#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/http.h"
#include "server/openai/serving.h"
#include "server/workers.h"

namespace nibble::server {

/// Who may call, and from where; names as vLLM's flags.
struct AccessOptions {
  std::vector<std::string> api_keys;  // empty: everybody
  std::vector<std::string> allowed_origins = {"*"};
  std::vector<std::string> allowed_methods = {"*"};
  std::vector<std::string> allowed_headers = {"*"};
  bool allow_credentials = false;
  bool enable_request_id_headers = false;  // echo X-Request-Id
};

/// Requests → endpoints: the table of routes, API keys, CORS, errors as JSON. The port is taken at once, so that a
/// second server on it fails before it loads a model; clients can connect after `start`.
///
/// Life: construct, `start` with a loaded engine, `begin_drain` (new requests get 503), Engine::drain, `shut_down`. The
/// engine must outlive it.
class ApiServer {
 public:
  /// Errors: as HttpServer. `http` needs neither make_error nor common_headers.
  ApiServer(HttpOptions http, AccessOptions access);
  ~ApiServer();
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;

  std::uint16_t port() const { return http_->port(); }
  std::size_t num_connections() const { return http_->num_connections(); }

  /// Errors: as openai::Serving and HttpServer::start.
  void start(engine::Engine& engine, std::unique_ptr<tokenizer::ChatTemplate> chat_template,
             openai::ApiOptions options);
  const openai::Serving& serving() const { return *serving_; }

  void begin_drain();
  /// After Engine::drain: what is answered gets `grace` to reach its clients.
  void shut_down(std::chrono::milliseconds grace);

 private:
  void handle(const std::shared_ptr<Exchange>& exchange);
  void dispatch(const std::shared_ptr<Exchange>& exchange);
  std::vector<HttpHeader> common_headers(const HttpRequest& request) const;
  HttpResponse preflight(const HttpRequest& request) const;
  bool is_authorized(const HttpRequest& request) const;

  AccessOptions access_;
  std::vector<std::string> key_digests_;  // SHA-256 of each key
  std::unique_ptr<openai::Serving> serving_;
  std::unique_ptr<Workers> workers_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace nibble::server
