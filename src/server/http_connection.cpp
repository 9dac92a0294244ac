#include "server/http_connection.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <ctime>
#include <exception>
#include <utility>

#include "core/log.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

/// What a connection may send ahead of the answer it waits for; more stays in the kernel.
constexpr std::size_t kMaxPipelinedBytes = 128 * 1024;
/// How long a refused client may go on sending before the connection is torn down under it; closing at once would
/// reset the connection and lose the answer (RFC 9112 §9.6).
constexpr std::chrono::milliseconds kLingerTimeout{2'000};

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    default: return "Status";
  }
}

class ConnectionExchange final : public Exchange {
 public:
  ConnectionExchange(std::shared_ptr<HttpConnection> connection, std::uint64_t number,
                     std::shared_ptr<HttpRequest> request, std::unique_ptr<BodyShare> body_share)
      : connection_(std::move(connection)),
        number_(number),
        request_(std::move(request)),
        body_share_(std::move(body_share)) {}
  ~ConnectionExchange() override {
    asio::post(connection_->executor(), [connection = connection_, number = number_] { connection->abandon(number); });
  }
  ConnectionExchange(const ConnectionExchange&) = delete;
  ConnectionExchange& operator=(const ConnectionExchange&) = delete;

  const HttpRequest& request() const override { return *request_; }
  void drop_body() override {
    request_->body = std::string();
    body_share_.reset();
  }

  void respond(HttpResponse response) override {
    asio::post(connection_->executor(),
               [connection = connection_, number = number_, response = std::move(response)]() mutable {
                 connection->respond(number, std::move(response));
               });
  }
  void start_stream(std::string content_type) override {
    asio::post(connection_->executor(),
               [connection = connection_, number = number_, content_type = std::move(content_type)] {
                 connection->start_stream(number, content_type);
               });
  }
  void write(std::string bytes) override {
    asio::post(connection_->executor(),
               [connection = connection_, number = number_, bytes = std::move(bytes)]() mutable {
                 connection->write_stream(number, std::move(bytes));
               });
  }
  void finish() override {
    asio::post(connection_->executor(),
               [connection = connection_, number = number_] { connection->finish_stream(number); });
  }
  void when_disconnected(std::function<void()> callback) override {
    asio::post(connection_->executor(),
               [connection = connection_, number = number_, callback = std::move(callback)]() mutable {
                 connection->watch(number, std::move(callback));
               });
  }
  void post(std::function<void()> task) override { asio::post(connection_->executor(), std::move(task)); }

 private:
  std::shared_ptr<HttpConnection> connection_;  // shared with the pending operations of the socket
  std::uint64_t number_;
  std::shared_ptr<HttpRequest> request_;  // shared with the connection, which does not look at the body
  std::unique_ptr<BodyShare> body_share_;
};

}  // namespace

std::vector<std::shared_ptr<HttpConnection>> HttpShared::live_connections() {
  std::vector<std::shared_ptr<HttpConnection>> live;
  const std::lock_guard lock(mutex);
  for (HttpConnection* connection : connections) {
    if (auto owner = connection->weak_from_this().lock()) live.push_back(std::move(owner));
  }
  return live;  // whoever holds the last owner destroys it without the lock
}

bool BodyShare::grow_to(std::size_t num_bytes) {
  const std::size_t num_added = num_bytes - num_bytes_;
  if (shared_->body_bytes.fetch_add(num_added) + num_added > shared_->max_total_body_bytes()) {
    shared_->body_bytes -= num_added;
    return false;
  }
  num_bytes_ = num_bytes;
  return true;
}

HttpConnection::HttpConnection(std::shared_ptr<HttpShared> shared, tcp::socket socket)
    : shared_(std::move(shared)),
      socket_(std::move(socket)),
      read_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()) {
  error_code ec;
  const auto remote = socket_.remote_endpoint(ec);
  if (!ec) peer_ = fmt::format("{}:{}", remote.address().to_string(), remote.port());
  socket_.set_option(tcp::no_delay(true), ec);
  const std::lock_guard lock(shared_->mutex);
  shared_->connections.insert(this);
}

HttpConnection::~HttpConnection() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->connections.erase(this);
  }
  shared_->connection_gone.notify_all();
}

void HttpConnection::start() {
  become_idle();
  read();
}

void HttpConnection::close_if_idle() {
  if (idle_since() != 0) close();
}

void HttpConnection::close() {
  if (is_closed_) return;
  is_closed_ = true;
  report_disconnect();
  error_code ignored;
  read_timer_.cancel();
  write_timer_.cancel();
  socket_.close(ignored);
}

// ---- reading ----

void HttpConnection::become_idle() {
  stage_ = Stage::Reading;
  idle_since_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  arm_read_timer(shared_->options.idle_timeout);
}

void HttpConnection::read() {
  if (is_reading_ || is_closed_ || saw_end_ || input_.size() >= kMaxPipelinedBytes) return;
  is_reading_ = true;
  socket_.async_read_some(asio::buffer(chunk_), [self = shared_from_this()](const error_code& ec, std::size_t size) {
    self->is_reading_ = false;
    self->on_read(ec, size);
  });
}

void HttpConnection::on_read(const error_code& ec, std::size_t num_bytes) {
  if (is_closed_) return;
  if (ec == asio::error::eof) return on_end_of_input();
  if (ec) return close();
  if (stage_ != Stage::Lingering) {
    input_.append(chunk_.data(), num_bytes);
    advance();
  }
  read();
}

/// The client sends no more. While an answer is under way it counts as gone, as everywhere: a closed socket looks the
/// same. What can be answered all the same is sent.
void HttpConnection::on_end_of_input() {
  saw_end_ = true;
  keep_alive_ = false;
  if (stage_ == Stage::Reading || stage_ == Stage::Lingering) return close();
  report_disconnect();
}

void HttpConnection::advance() {
  while (stage_ == Stage::Reading && !is_closed_) {
    // RFC 9112 §2.2: empty lines before a request are skipped.
    if (!parser_) input_.erase(0, std::min(input_.find_first_not_of("\r\n"), input_.size()));
    if (input_.empty()) return;
    if (!parser_) {
      idle_since_.store(0, std::memory_order_relaxed);
      parser_.emplace(shared_->options);
      body_share_ = std::make_unique<BodyShare>(shared_);
      arm_read_timer(shared_->options.header_timeout);
    }
    const HttpParser::State before = parser_->state();
    input_.erase(0, parser_->feed(input_));
    const HttpParser::State state = parser_->state();
    if (state == HttpParser::State::Failed) return refuse(parser_->failure_status(), parser_->failure());
    if (!body_share_->grow_to(parser_->num_body_bytes())) {
      return refuse(503, fmt::format("The server holds {} bytes of request bodies already; try again later.",
                                     shared_->body_bytes.load()));
    }
    if (state == HttpParser::State::Done) {
      begin_exchange();
      continue;
    }
    if (before == HttpParser::State::Header && state == HttpParser::State::Body) {
      arm_read_timer(shared_->options.body_timeout);
      if (parser_->expects_continue()) {
        enqueue("HTTP/1.1 100 Continue\r\n\r\n");
        flush();
      }
    }
    return;
  }
}

void HttpConnection::refuse(int status, std::string message) {
  parser_.reset();
  body_share_.reset();
  input_.clear();
  read_timer_.cancel();
  idle_since_.store(0, std::memory_order_relaxed);
  request_ = std::make_shared<HttpRequest>();
  keep_alive_ = false;
  is_http_1_0_ = false;
  started_at_ = Clock::now();
  stage_ = Stage::Answering;
  respond(++number_, shared_->options.make_error(status, std::move(message)));
}

void HttpConnection::begin_exchange() {
  read_timer_.cancel();
  keep_alive_ = parser_->keep_alive() && !saw_end_;
  is_http_1_0_ = parser_->is_http_1_0();
  auto request = std::make_shared<HttpRequest>(parser_->take_request());
  request->peer = peer_;
  request_ = request;
  parser_.reset();
  started_at_ = Clock::now();
  stage_ = Stage::Answering;
  auto exchange =
      std::make_shared<ConnectionExchange>(shared_from_this(), ++number_, std::move(request), std::move(body_share_));
  try {
    shared_->handler(exchange);
  } catch (const std::exception& error) {
    log::error("{} {}: {}", request_->method, request_->path, error.what());
    exchange->respond(shared_->options.make_error(500, "Internal server error."));
  }
}

void HttpConnection::arm_read_timer(std::chrono::milliseconds timeout) {
  read_timer_.expires_after(timeout);
  read_timer_.async_wait([self = shared_from_this()](const error_code& ec) {
    // An expiry that was already queued when the timer was armed anew arrives all the same.
    if (!ec && self->read_timer_.expiry() <= Clock::now()) self->on_read_timeout();
  });
}

void HttpConnection::on_read_timeout() {
  if (is_closed_ || (stage_ != Stage::Reading && stage_ != Stage::Lingering)) return;
  if (stage_ == Stage::Reading && parser_) return refuse(408, "The request did not arrive in time.");
  close();
}

// ---- answering ----

std::string HttpConnection::header_text(int status, std::string_view content_type,
                                        const std::vector<HttpHeader>& headers) {
  status_ = status;
  if (shared_->is_stopping.load(std::memory_order_relaxed)) keep_alive_ = false;
  std::string text = fmt::format("HTTP/1.1 {} {}\r\nServer: nibble\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n", status,
                                 reason_phrase(status), fmt::gmtime(std::time(nullptr)));
  const auto add = [&](std::string_view name, std::string_view value) {
    text += fmt::format("{}: {}\r\n", name, value);
  };
  if (!content_type.empty()) add("Content-Type", content_type);
  if (!keep_alive_) {
    add("Connection", "close");
  } else if (is_http_1_0_) {
    add("Connection", "keep-alive");
  }
  for (const HttpHeader& field : headers) add(field.name, field.value);
  if (shared_->options.common_headers) {
    for (const HttpHeader& field : shared_->options.common_headers(*request_)) add(field.name, field.value);
  }
  return text;
}

void HttpConnection::respond(std::uint64_t number, HttpResponse response) {
  if (!is_current(number) || stage_ != Stage::Answering) return;
  std::string text = header_text(response.status, response.content_type, response.headers);
  if (response.status != 204) text += fmt::format("Content-Length: {}\r\n", response.body.size());
  text += "\r\n";
  if (request_->method != "HEAD") text += response.body;
  stage_ = Stage::Flushing;
  enqueue(std::move(text));
  flush();
}

void HttpConnection::start_stream(std::uint64_t number, std::string_view content_type) {
  if (!is_current(number) || stage_ != Stage::Answering) return;
  if (is_http_1_0_) keep_alive_ = false;  // the end of the connection is the end of the body
  std::string text = header_text(200, content_type, {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
  if (!is_http_1_0_) text += "Transfer-Encoding: chunked\r\n";
  text += "\r\n";
  stage_ = Stage::Streaming;
  enqueue(std::move(text));
  flush();
}

void HttpConnection::write_stream(std::uint64_t number, std::string bytes) {
  if (!is_current(number) || stage_ != Stage::Streaming || bytes.empty()) return;
  if (unsent_bytes_ + bytes.size() > shared_->options.max_unsent_bytes) {
    log::warning("{}: the client does not read its stream ({} bytes wait): closing", peer_, unsent_bytes_);
    return close();
  }
  enqueue(is_http_1_0_ ? std::move(bytes) : fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes));
  flush();
}

void HttpConnection::finish_stream(std::uint64_t number) {
  if (!is_current(number) || stage_ != Stage::Streaming) return;
  stage_ = Stage::Flushing;
  if (!is_http_1_0_) enqueue("0\r\n\r\n");
  if (queued_.empty() && in_flight_.empty()) return end_exchange();
  flush();
}

void HttpConnection::watch(std::uint64_t number, std::function<void()> callback) {
  if (number != number_) return;  // that answer is complete
  if (is_closed_ || saw_end_) return callback();
  on_disconnect_ = std::move(callback);
}

void HttpConnection::abandon(std::uint64_t number) {
  if (!is_current(number)) return;
  if (stage_ == Stage::Answering) {
    log::error("{} {}: dropped without an answer", request_->method, request_->path);
    respond(number, shared_->options.make_error(500, "Internal server error."));
  } else if (stage_ == Stage::Streaming) {
    close();  // a chunked body without its end tells the client that it is incomplete
  }
}

void HttpConnection::enqueue(std::string bytes) {
  unsent_bytes_ += bytes.size();
  queued_.push_back(std::move(bytes));
}

void HttpConnection::flush() {
  if (is_closed_ || !in_flight_.empty() || queued_.empty()) return;
  in_flight_.swap(queued_);
  std::vector<asio::const_buffer> buffers;
  buffers.reserve(in_flight_.size());
  for (const std::string& bytes : in_flight_) buffers.push_back(asio::buffer(bytes));
  write_timer_.expires_after(shared_->options.write_timeout);
  write_timer_.async_wait([self = shared_from_this()](const error_code& ec) {
    if (!ec && self->write_timer_.expiry() <= Clock::now() && !self->in_flight_.empty()) self->close();
  });
  asio::async_write(socket_, buffers,
                    [self = shared_from_this()](const error_code& ec, std::size_t) { self->on_written(ec); });
}

void HttpConnection::on_written(const error_code& ec) {
  write_timer_.cancel();
  for (const std::string& bytes : in_flight_) unsent_bytes_ -= bytes.size();
  in_flight_.clear();
  if (is_closed_) return;
  if (ec) return close();
  if (!queued_.empty()) return flush();
  if (stage_ == Stage::Flushing) end_exchange();
}

/// The answer is with the kernel: on to the next request, or to the end of the connection.
void HttpConnection::end_exchange() {
  report_answer("");
  on_disconnect_ = nullptr;
  ++number_;  // calls of the finished exchange no longer match
  if (saw_end_) {
    stage_ = Stage::Lingering;
    return close();
  }
  if (!keep_alive_) return linger();
  become_idle();
  advance();
  read();
}

void HttpConnection::linger() {
  stage_ = Stage::Lingering;
  error_code ec;
  socket_.shutdown(tcp::socket::shutdown_send, ec);
  if (ec) return close();
  input_.clear();
  arm_read_timer(kLingerTimeout);
  read();
}

void HttpConnection::report_disconnect() {
  if (stage_ == Stage::Reading || stage_ == Stage::Lingering) return;
  if (is_closed_) report_answer(" (client gone)");
  if (stage_ != Stage::Flushing && on_disconnect_) std::exchange(on_disconnect_, nullptr)();
}

void HttpConnection::report_answer(std::string_view remark) const {
  const std::chrono::duration<double> elapsed = Clock::now() - started_at_;
  if (shared_->options.on_answered) shared_->options.on_answered(*request_, status_, elapsed.count());
  if (!shared_->options.access_log) return;
  const std::string_view method = request_->method.empty() ? "-" : std::string_view(request_->method);
  const std::string_view path = request_->path.empty() ? "-" : std::string_view(request_->path).substr(0, 200);
  log::info("{} {} {} {} {:.1f} ms{}", peer_, method, path, status_, elapsed.count() * 1e3, remark);
}

}  // namespace nibble::server
