#include "server/routes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <exception>
#include <string_view>
#include <utility>

#include "core/log.h"
#include "server/openai/endpoints.h"
#include "server/openai/errors.h"

namespace nibble::server {
namespace {

using openai::Serving;

enum class RunsOn : std::uint8_t {
  Io,       // at once, on the connection's thread
  Workers,  // parses and tokenizes what the client sent
};
enum class Access : std::uint8_t { Open, Key };

struct Route {
  std::string_view method;
  std::string_view path;  // "/v1/models/{model}" stands for every path below /v1/models/, slashes included
  RunsOn runs_on;
  Access access;
  void (*serve)(Serving&, const std::shared_ptr<Exchange>&);
};

constexpr Route kRoutes[] = {
    {"GET", "/health", RunsOn::Io, Access::Open, openai::serve_health},
    {"GET", "/ping", RunsOn::Io, Access::Open, openai::serve_health},
    {"POST", "/ping", RunsOn::Io, Access::Open, openai::serve_health},
    {"GET", "/version", RunsOn::Io, Access::Open, openai::serve_version},
    {"GET", "/metrics", RunsOn::Io, Access::Open, openai::serve_metrics},
    {"GET", "/v1/models", RunsOn::Io, Access::Key, openai::serve_models},
    {"GET", "/v1/models/{model}", RunsOn::Io, Access::Key, openai::serve_model},
    {"POST", "/v1/completions", RunsOn::Workers, Access::Key, openai::serve_completions},
    {"POST", "/v1/chat/completions", RunsOn::Workers, Access::Key, openai::serve_chat_completions},
    {"POST", "/tokenize", RunsOn::Workers, Access::Key, openai::serve_tokenize},
    {"POST", "/detokenize", RunsOn::Workers, Access::Key, openai::serve_detokenize},
};

constexpr int kNumWorkers = 2;
constexpr std::size_t kMaxQueuedRequests = 4'096;

/// An answer is the same for HEAD, less the body, which the connection leaves out.
std::string_view effective_method(const HttpRequest& request) {
  return request.method == "HEAD" ? std::string_view("GET") : std::string_view(request.method);
}

bool matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with('}')) return route.path == path;
  const std::string_view folder = route.path.substr(0, route.path.find('{'));
  return path.size() > folder.size() && path.starts_with(folder);
}

const Route* find_route(const HttpRequest& request) {
  const auto found = std::ranges::find_if(kRoutes, [&](const Route& route) {
    return matches(route, request.path) && route.method == effective_method(request);
  });
  return found == std::end(kRoutes) ? nullptr : found;
}

/// Labels of known requests only: a client must not be able to make up time series.
openai::RouteLabel route_label(const HttpRequest& request) {
  const Route* route = find_route(request);
  if (route != nullptr) return {std::string(route->method), std::string(route->path)};
  return {request.method == "GET" || request.method == "POST" || request.method == "OPTIONS" ? request.method : "other",
          "none"};
}

HttpResponse no_route(const HttpRequest& request) {
  std::vector<std::string_view> methods;
  for (const Route& route : kRoutes) {
    if (matches(route, request.path)) methods.push_back(route.method);
  }
  if (methods.empty()) return openai::http_error(404, "Not Found");
  HttpResponse response = openai::http_error(405, "Method Not Allowed");
  response.headers.push_back({"Allow", fmt::format("{}", fmt::join(methods, ", "))});
  return response;
}

/// Only these two fields make a preflight; anything less would let OPTIONS past the API key.
bool is_preflight(const HttpRequest& request) {
  return request.method == "OPTIONS" && request.header("Origin") && request.header("Access-Control-Request-Method");
}

bool is_open(const HttpRequest& request) {
  return std::ranges::any_of(
      kRoutes, [&](const Route& route) { return matches(route, request.path) && route.access == Access::Open; });
}

std::string sha256(std::string_view text) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

/// The token of "Authorization: Bearer TOKEN", the scheme in any case.
std::string_view bearer_token(const HttpRequest& request) {
  const std::string_view value = request.header("Authorization").value_or("");
  constexpr std::string_view kScheme = "bearer ";
  if (value.size() < kScheme.size()) return {};
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(value[i])) != kScheme[i]) return {};
  }
  return value.substr(kScheme.size());
}

bool contains(const std::vector<std::string>& list, std::string_view item) {
  return std::ranges::find(list, item) != list.end();
}

void serve(const Route& route, Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  try {
    route.serve(serving, exchange);
    exchange->drop_body();
  } catch (const std::exception& error) {
    const HttpResponse response = openai::error_response(error);
    if (response.status >= 500) log::error("{} {}: {}", route.method, route.path, error.what());
    exchange->respond(response);
  }
}

}  // namespace

ApiServer::ApiServer(HttpOptions http, AccessOptions access) : access_(std::move(access)) {
  for (const std::string& key : access_.api_keys) key_digests_.push_back(sha256(key));
  http.make_error = openai::http_error;
  http.common_headers = [this](const HttpRequest& request) { return common_headers(request); };
  http.on_answered = [this](const HttpRequest& request, int status, double seconds) {
    serving_->metrics.observe_http(route_label(request), status, seconds);
  };
  http_ = std::make_unique<HttpServer>(std::move(http),
                                       [this](const std::shared_ptr<Exchange>& exchange) { handle(exchange); });
}

ApiServer::~ApiServer() {
  shut_down(std::chrono::milliseconds(0));
}

void ApiServer::start(engine::Engine& engine, std::unique_ptr<tokenizer::ChatTemplate> chat_template,
                      openai::ApiOptions options) {
  serving_ = std::make_unique<Serving>(engine, std::move(chat_template), std::move(options));
  workers_ = std::make_unique<Workers>(kNumWorkers, kMaxQueuedRequests);
  http_->start();
}

void ApiServer::begin_drain() {
  if (serving_) serving_->is_draining = true;
  http_->stop_accepting();
}

void ApiServer::shut_down(std::chrono::milliseconds grace) {
  begin_drain();
  if (workers_) workers_->stop();
  http_->shut_down(grace);
}

void ApiServer::handle(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  if (is_preflight(request)) return exchange->respond(preflight(request));
  if (!is_open(request) && !is_authorized(request)) {
    HttpResponse response;
    response.status = 401;
    response.body = R"({"error":"Unauthorized"})";
    response.headers.push_back({"WWW-Authenticate", "Bearer"});
    return exchange->respond(std::move(response));
  }
  dispatch(exchange);
}

void ApiServer::dispatch(const std::shared_ptr<Exchange>& exchange) {
  const Route* route = find_route(exchange->request());
  if (route == nullptr) return exchange->respond(no_route(exchange->request()));
  if (route->runs_on == RunsOn::Io) return serve(*route, *serving_, exchange);
  if (serving_->is_draining) {
    return exchange->respond(openai::error_response(openai::unavailable("The server is shutting down.")));
  }
  const auto submitted = workers_->submit([this, route, exchange] { serve(*route, *serving_, exchange); });
  if (submitted == Workers::Submitted::No) {
    exchange->respond(openai::error_response(openai::unavailable("The server is overloaded; try again later.")));
  }
}

std::vector<HttpHeader> ApiServer::common_headers(const HttpRequest& request) const {
  std::vector<HttpHeader> headers;
  if (const auto origin = request.header("Origin")) {
    const bool allows_all = contains(access_.allowed_origins, "*");
    // A browser takes no "*" together with credentials: the origin itself is named then.
    if (allows_all && !access_.allow_credentials) {
      headers.push_back({"Access-Control-Allow-Origin", "*"});
    } else if (allows_all || contains(access_.allowed_origins, *origin)) {
      headers.push_back({"Access-Control-Allow-Origin", std::string(*origin)});
      headers.push_back({"Vary", "Origin"});
    }
    if (access_.allow_credentials) headers.push_back({"Access-Control-Allow-Credentials", "true"});
  }
  if (access_.enable_request_id_headers) {
    const std::string id(request.header("X-Request-Id").value_or(""));
    headers.push_back({"X-Request-Id", id.empty() ? openai::random_hex(32) : id});
  }
  return headers;
}

HttpResponse ApiServer::preflight(const HttpRequest& request) const {
  HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  const bool is_allowed = contains(access_.allowed_origins, "*") ||
                          contains(access_.allowed_origins, request.header("Origin").value_or(""));
  if (!is_allowed) {
    response.status = 400;
    response.body = "Disallowed CORS origin";
    return response;
  }
  response.body = "OK";
  const bool any_method = contains(access_.allowed_methods, "*");
  response.headers.push_back(
      {"Access-Control-Allow-Methods", any_method ? "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
                                                  : fmt::format("{}", fmt::join(access_.allowed_methods, ", "))});
  const bool any_header = contains(access_.allowed_headers, "*");
  const std::string wanted(request.header("Access-Control-Request-Headers").value_or(""));
  response.headers.push_back(
      {"Access-Control-Allow-Headers",
       any_header && !wanted.empty() ? wanted : fmt::format("{}", fmt::join(access_.allowed_headers, ", "))});
  response.headers.push_back({"Access-Control-Max-Age", "600"});
  return response;
}

/// Compares digests, in constant time and against every key, so that timing tells nothing about them.
bool ApiServer::is_authorized(const HttpRequest& request) const {
  if (key_digests_.empty()) return true;
  const std::string digest = sha256(bearer_token(request));
  bool is_known = false;
  for (const std::string& key_digest : key_digests_) {
    is_known |= CRYPTO_memcmp(digest.data(), key_digest.data(), digest.size()) == 0;
  }
  return is_known;
}

}  // namespace nibble::server
