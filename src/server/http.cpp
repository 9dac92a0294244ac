#include "server/http.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/http_connection.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kAcceptRetry{50};
constexpr std::size_t kNumEvictedConnections = 16;

tcp::endpoint resolve(asio::io_context& io, const HttpOptions& options) {
  std::string host = options.host.empty() ? "0.0.0.0" : options.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  error_code ec;
  const auto address = asio::ip::make_address(host, ec);
  if (!ec) return {address, options.port};
  tcp::resolver resolver(io);
  const auto results = resolver.resolve(host, std::to_string(options.port), ec);
  if (ec || results.empty()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--host {}: does not resolve ({}); give an address of this machine", host, ec.message()));
  }
  return results.begin()->endpoint();
}

[[noreturn]] void throw_bind_error(const HttpOptions& options, const error_code& ec) {
  if (ec == asio::error::address_in_use) {
    throw Error(ErrorCode::Unavailable,
                fmt::format("port {} on {} is already in use; choose another with --port", options.port, options.host));
  }
  throw Error(ErrorCode::Unavailable, fmt::format("cannot listen on {} port {}: {}; see --host and --port",
                                                  options.host, options.port, ec.message()));
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpOptions options, HttpHandler handler)
      : shared_(std::make_shared<HttpShared>(std::move(options), std::move(handler))),
        acceptor_(asio::make_strand(shared_->io)),
        accept_timer_(acceptor_.get_executor()),
        work_(asio::make_work_guard(shared_->io)) {
    const tcp::endpoint endpoint = resolve(shared_->io, shared_->options);
    error_code ec;
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor_.bind(endpoint, ec);
    if (ec) throw_bind_error(shared_->options, ec);
    port_ = acceptor_.local_endpoint().port();
  }

  ~Impl() { shut_down(std::chrono::milliseconds(0)); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  std::uint16_t port() const { return port_; }

  std::size_t num_connections() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->connections.size();
  }

  void start() {
    error_code ec;
    acceptor_.listen(tcp::socket::max_listen_connections, ec);
    if (ec) throw_bind_error(shared_->options, ec);
    asio::post(acceptor_.get_executor(), [this] { accept(); });
    for (int i = 0; i < shared_->options.num_threads; ++i) {
      threads_.emplace_back([shared = shared_] { shared->io.run(); });
    }
  }

  void stop_accepting() {
    shared_->is_stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      accept_timer_.cancel();
      acceptor_.close(ignored);
    });
  }

  void shut_down(std::chrono::milliseconds grace) {
    if (threads_.empty()) return;
    stop_accepting();
    for (const auto& connection : shared_->live_connections()) {
      asio::post(connection->executor(), [connection] { connection->close_if_idle(); });
    }
    {
      std::unique_lock lock(shared_->mutex);
      shared_->connection_gone.wait_for(lock, grace, [&] { return shared_->connections.empty(); });
    }
    for (const auto& connection : shared_->live_connections()) {
      asio::post(connection->executor(), [connection] { connection->close(); });
    }
    work_.reset();
    threads_.clear();  // joins: with every socket closed, the context runs out of work
  }

 private:
  void accept() {
    acceptor_.async_accept(asio::make_strand(shared_->io), [this](const error_code& ec, tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (!ec) {
        auto connection = std::make_shared<HttpConnection>(shared_, std::move(socket));
        asio::post(connection->executor(), [connection] { connection->start(); });
      }
      if (!ec || ec == asio::error::connection_aborted) return accept();
      back_off(ec);
    });
  }

  /// Out of descriptors or memory: clients wait in the kernel's queue until there is room again.
  void back_off(const error_code& ec) {
    log::warning("cannot accept a connection ({}): closing idle ones and trying again", ec.message());
    evict_idle_connections();
    accept_timer_.expires_after(kAcceptRetry);
    accept_timer_.async_wait([this](const error_code& timer_error) {
      if (!timer_error && acceptor_.is_open()) accept();
    });
  }

  void evict_idle_connections() {
    std::vector<std::pair<std::int64_t, std::shared_ptr<HttpConnection>>> idle;
    for (auto& connection : shared_->live_connections()) {
      if (const std::int64_t since = connection->idle_since(); since != 0) idle.emplace_back(since, connection);
    }
    std::ranges::sort(idle, {}, [](const auto& entry) { return entry.first; });
    if (idle.size() > kNumEvictedConnections) idle.resize(kNumEvictedConnections);
    for (const auto& [since, connection] : idle) {
      asio::post(connection->executor(), [owner = connection] { owner->close_if_idle(); });
    }
  }

  std::shared_ptr<HttpShared> shared_;  // see HttpShared
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::uint16_t port_ = 0;
  std::vector<std::jthread> threads_;
};

HttpServer::HttpServer(HttpOptions options, HttpHandler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {}
HttpServer::~HttpServer() = default;
std::uint16_t HttpServer::port() const {
  return impl_->port();
}
std::size_t HttpServer::num_connections() const {
  return impl_->num_connections();
}
void HttpServer::start() {
  impl_->start();
}
void HttpServer::stop_accepting() {
  impl_->stop_accepting();
}
void HttpServer::shut_down(std::chrono::milliseconds grace) {
  impl_->shut_down(grace);
}

}  // namespace nibble::server
