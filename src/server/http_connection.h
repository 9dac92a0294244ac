#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "server/http.h"
#include "server/http_parser.h"

namespace nibble::server {

class HttpConnection;

/// What connections share with their server; owned by both, since a connection may outlive the HttpServer object while
/// its last handler runs.
struct HttpShared {
  HttpShared(HttpOptions http_options, HttpHandler http_handler)
      : options(std::move(http_options)), handler(std::move(http_handler)), io(options.num_threads) {}

  std::size_t max_total_body_bytes() const {
    return options.max_total_body_bytes != 0 ? options.max_total_body_bytes : 8 * options.max_body_bytes;
  }

  /// Every connection that is not just being destroyed.
  std::vector<std::shared_ptr<HttpConnection>> live_connections();

  HttpOptions options;
  HttpHandler handler;
  std::atomic<bool> is_stopping{false};
  std::atomic<std::size_t> body_bytes{0};  // held by all BodyShares
  std::mutex mutex;
  std::condition_variable connection_gone;
  std::unordered_set<HttpConnection*> connections;
  boost::asio::io_context io;
};

/// What one request's body takes of HttpOptions::max_total_body_bytes, until it is destroyed. Moves with the body from
/// the connection to the exchange.
class BodyShare {
 public:
  explicit BodyShare(std::shared_ptr<HttpShared> shared) : shared_(std::move(shared)) {}
  ~BodyShare() { shared_->body_bytes -= num_bytes_; }
  BodyShare(const BodyShare&) = delete;
  BodyShare& operator=(const BodyShare&) = delete;

  /// False, and nothing changes, where all bodies together would grow too large.
  bool grow_to(std::size_t num_bytes);

 private:
  std::shared_ptr<HttpShared> shared_;  // an exchange may outlive its connection and server
  std::size_t num_bytes_ = 0;
};

/// One client: reads requests one after the other (what is pipelined behind the current one waits), hands each to the
/// handler and writes its answer. It goes on reading while an answer is under way, which is how it learns that the
/// client has left. Everything but the constructor, the destructor and `idle_since` runs on the socket's strand.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<HttpShared> shared, boost::asio::ip::tcp::socket socket);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  auto executor() { return socket_.get_executor(); }
  /// Clock ticks since when it waits for a request; 0 while it works on one. Any thread.
  std::int64_t idle_since() const { return idle_since_.load(std::memory_order_relaxed); }

  void start();
  void close_if_idle();
  void close();

  // Exchange's calls: `number` says for which request of this connection.
  void respond(std::uint64_t number, HttpResponse response);
  void start_stream(std::uint64_t number, std::string_view content_type);
  void write_stream(std::uint64_t number, std::string bytes);
  void finish_stream(std::uint64_t number);
  void watch(std::uint64_t number, std::function<void()> callback);
  void abandon(std::uint64_t number);

 private:
  using error_code = boost::system::error_code;
  enum class Stage : std::uint8_t {
    Reading,    // a request, or nothing yet
    Answering,  // the handler has it
    Streaming,  // the answer's header is out
    Flushing,   // the answer is complete, its bytes are not sent yet
    Lingering,  // everything is sent, the connection ends: discards what still comes
  };

  void become_idle();
  void read();
  void on_read(const error_code& ec, std::size_t num_bytes);
  void on_end_of_input();
  void advance();
  void refuse(int status, std::string message);
  void begin_exchange();
  void arm_read_timer(std::chrono::milliseconds timeout);
  void on_read_timeout();

  bool is_current(std::uint64_t number) const { return !is_closed_ && number == number_; }
  std::string header_text(int status, std::string_view content_type, const std::vector<HttpHeader>& headers);
  void enqueue(std::string bytes);
  void flush();
  void on_written(const error_code& ec);
  void end_exchange();
  void linger();
  void report_disconnect();
  void report_answer(std::string_view remark) const;

  std::shared_ptr<HttpShared> shared_;
  boost::asio::ip::tcp::socket socket_;
  std::string peer_;

  std::array<char, 8 * 1024> chunk_;
  std::string input_;  // read, not parsed
  std::optional<HttpParser> parser_;
  std::unique_ptr<BodyShare> body_share_;  // of the request that parser_ reads
  boost::asio::steady_timer read_timer_;
  bool is_reading_ = false;
  bool saw_end_ = false;
  bool is_closed_ = false;
  std::atomic<std::int64_t> idle_since_{0};

  Stage stage_ = Stage::Reading;
  std::uint64_t number_ = 0;
  std::shared_ptr<const HttpRequest> request_;  // shared with its exchange
  std::function<void()> on_disconnect_;
  bool keep_alive_ = true;
  bool is_http_1_0_ = false;
  int status_ = 0;
  std::chrono::steady_clock::time_point started_at_;

  boost::asio::steady_timer write_timer_;
  std::vector<std::string> queued_;
  std::vector<std::string> in_flight_;
  std::size_t unsent_bytes_ = 0;
};

}  // namespace nibble::server
