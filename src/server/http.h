#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::server {

struct HttpHeader {
  std::string name;
  std::string value;
};

/// One complete request. Names and values are what the client sent, checked by the parser for control characters.
struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // of the target, not percent-decoded, without query; absolute-form targets lose their origin
  std::string query;
  std::vector<HttpHeader> headers;
  std::string body;
  std::string peer;  // "127.0.0.1:54321"

  /// First header of that name in any case.
  std::optional<std::string_view> header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<HttpHeader> headers;
};

/// The answer to one request: either `respond`, or `start_stream`, `write`…, `finish`. Any thread may call; calls take
/// effect in order on the connection's strand, and calls after the end, or after the client has gone, do nothing. An
/// exchange whose last owner drops it unanswered answers 500.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;
  /// Frees the request's body, which whoever answers has read: an answer may take minutes. Not at the same time as
  /// anything that reads the body.
  virtual void drop_body() = 0;

  virtual void respond(HttpResponse response) = 0;
  virtual void start_stream(std::string content_type) = 0;
  virtual void write(std::string bytes) = 0;
  virtual void finish() = 0;

  /// `callback` runs once on the strand if the client goes away, or does not read what is written (see
  /// HttpOptions::max_unsent_bytes), before the answer is complete; at once where that has happened already.
  virtual void when_disconnected(std::function<void()> callback) = 0;
  /// Runs `task` on the connection's strand: tasks of one exchange never overlap.
  virtual void post(std::function<void()> task) = 0;
};

/// Called on an I/O thread: quick work only. Exceptions answer 500.
using HttpHandler = std::function<void(std::shared_ptr<Exchange>)>;

struct HttpOptions {
  std::string host = "0.0.0.0";  // address or name
  std::uint16_t port = 8000;     // 0: any free one
  int num_threads = 2;
  std::size_t max_header_bytes = 64 * 1024;
  std::size_t max_num_headers = 256;
  std::size_t max_body_bytes = 32 * 1024 * 1024;
  /// All bodies together that are arriving or waiting to be read; what goes beyond is answered 503. 0: eight times
  /// max_body_bytes.
  std::size_t max_total_body_bytes = 0;
  /// What a streaming client may leave unread, beyond the kernel's buffers, before it counts as gone.
  std::size_t max_unsent_bytes = 1024 * 1024;
  std::chrono::milliseconds header_timeout{20'000};  // from a request's first byte to the end of its header
  std::chrono::milliseconds body_timeout{120'000};   // from there to the end of its body
  std::chrono::milliseconds idle_timeout{75'000};    // between requests of a connection
  std::chrono::milliseconds write_timeout{60'000};   // for one write to be accepted by the kernel
  bool access_log = true;
  /// Answer for what never becomes a request: bad syntax, too large, too slow.
  std::function<HttpResponse(int status, std::string message)> make_error;
  /// Added to every answer (CORS, request ids).
  std::function<std::vector<HttpHeader>(const HttpRequest&)> common_headers;
  /// Called once for every answer, when it is sent or its client has gone.
  std::function<void(const HttpRequest&, int status, double seconds)> on_answered;
};

/// An HTTP/1.0 and 1.1 server on its own threads: keep-alive, pipelining, chunked bodies, Expect: 100-continue, limits
/// and time-outs on everything a client controls. When descriptors run out it closes the connections that have been
/// idle longest and tries again. TLS would be a second kind of stream in http.cpp.
class HttpServer {
 public:
  /// Binds; clients cannot connect before `start`. Errors: Unavailable (port in use, not permitted), InvalidArgument
  /// (host does not resolve).
  HttpServer(HttpOptions options, HttpHandler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;
  std::size_t num_connections() const;
  /// Errors: Unavailable where another process took the port meanwhile.
  void start();
  /// Closes the listening socket; answers from now on end their connection.
  void stop_accepting();
  /// Stops accepting, closes idle connections, gives running answers `grace` to reach their clients, then closes the
  /// rest and joins the threads. Whoever still answers exchanges must have stopped before.
  void shut_down(std::chrono::milliseconds grace);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server
