#include "server/completion_client.h"

#include <fmt/format.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Clock = std::chrono::steady_clock;

struct BaseUrl {
  std::string host;
  std::string port;
  std::string authority;  // as the Host field has it
  std::string prefix;     // "" or "/v1"
};

BaseUrl parse_base_url(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  const auto bad = [&](std::string_view why) {
    return Error(ErrorCode::InvalidArgument, fmt::format("--base-url {}: {}, like http://127.0.0.1:8000", url, why));
  };
  if (!url.starts_with(kScheme)) throw bad("give an address that begins with http://");
  std::string_view rest = url.substr(kScheme.size());
  BaseUrl parsed;
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  parsed.prefix = rest.substr(slash);
  while (parsed.prefix.ends_with('/')) parsed.prefix.pop_back();
  rest = rest.substr(0, slash);
  const std::size_t bracket = rest.find(']');  // [::1]:8000
  const std::size_t colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  parsed.host = rest.substr(0, colon);
  parsed.port = colon == std::string_view::npos ? "80" : rest.substr(colon + 1);
  parsed.authority = rest;
  if (parsed.host.starts_with('[') && bracket != std::string_view::npos)
    parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
  if (parsed.host.empty()) throw bad("it names no host");
  if (parsed.port.empty() || parsed.port.find_first_not_of("0123456789") != std::string::npos) {
    throw bad("the port is no number");
  }
  return parsed;
}

/// Takes the events of a stream apart as they arrive.
class EventReader {
 public:
  /// `body`: everything received so far, of which this reads what is new and complete.
  void read(std::string_view body, Clock::time_point now, StreamedCompletion& completion) {
    while (true) {
      const std::size_t end = body.find("\n\n", read_);
      if (end == std::string_view::npos) return;
      read_event(body.substr(read_, end - read_), now, completion);
      read_ = end + 2;
    }
  }
  bool is_done() const { return is_done_; }
  bool has_usage() const { return has_usage_; }

 private:
  void read_event(std::string_view event, Clock::time_point now, StreamedCompletion& completion) {
    constexpr std::string_view kData = "data: ";
    if (!event.starts_with(kData)) return;  // a comment, which keeps a connection alive
    event.remove_prefix(kData.size());
    if (event == "[DONE]") {
      is_done_ = true;
      return;
    }
    const Json json = parse_json(event, "stream");
    if (json.contains("error")) throw Error(ErrorCode::Unavailable, json["error"].dump());
    const std::int64_t num_before = completion.num_output_tokens;
    const bool has_usage = read_usage(json, completion);
    const auto choices = json.find("choices");
    if (choices == json.end() || choices->empty()) return;
    completion.chunks.push_back({now, has_usage ? completion.num_output_tokens - num_before : 1});
  }

  bool read_usage(const Json& json, StreamedCompletion& completion) {
    const auto usage = json.find("usage");
    if (usage == json.end() || !usage->is_object()) return false;
    has_usage_ = true;
    completion.num_prompt_tokens = nibble::get<std::int64_t>(*usage, "prompt_tokens");
    completion.num_output_tokens = nibble::get<std::int64_t>(*usage, "completion_tokens");
    return true;
  }

  std::size_t read_ = 0;  // bytes of the body
  bool is_done_ = false;
  bool has_usage_ = false;
};

}  // namespace

class CompletionClient::Impl {
 public:
  Impl(const std::string& base_url, std::chrono::seconds timeout) : url_(parse_base_url(base_url)), timeout_(timeout) {}

  Json get(const std::string& path) {
    http::response_parser<http::string_body> parser;
    exchange(make_request(http::verb::get, path, ""), parser, [](std::string_view) {});
    return parse_json(parser.get().body(), url_.prefix + path);
  }

  StreamedCompletion stream(const std::string& path, const std::string& body) {
    StreamedCompletion completion;
    completion.sent = Clock::now();
    http::response_parser<http::string_body> parser;
    EventReader events;
    exchange(make_request(http::verb::post, path, body), parser,
             [&](std::string_view received) { events.read(received, Clock::now(), completion); });
    if (!events.is_done() || !events.has_usage() || completion.chunks.empty()) {
      throw Error(ErrorCode::Unavailable, "the stream ended without its usage");
    }
    return completion;
  }

 private:
  using Request = http::request<http::string_body>;

  Request make_request(http::verb verb, const std::string& path, const std::string& body) const {
    Request request(verb, url_.prefix + path, 11);
    request.set(http::field::host, url_.authority);
    request.set(http::field::content_type, "application/json");
    request.body() = body;
    request.prepare_payload();
    return request;
  }

  /// Sends and receives; `on_body` sees the whole body whenever it has grown.
  template <class OnBody>
  void exchange(Request request, http::response_parser<http::string_body>& parser, const OnBody& on_body) {
    parser.body_limit(std::numeric_limits<std::uint64_t>::max());
    const bool was_connected = connection_.has_value();
    try {
      connect();
      send(request);
      read_head(parser);
    } catch (const beast::system_error&) {
      // A kept connection may have been closed meanwhile: once more, on a new one.
      connection_.reset();
      if (!was_connected || parser.got_some()) throw unavailable("does not answer");
      return exchange(std::move(request), parser, on_body);
    }
    try {
      while (!parser.is_done()) {
        await([&](auto handler) { http::async_read_some(*connection_, buffer_, parser, std::move(handler)); });
        if (parser.get().result_int() == 200) on_body(parser.get().body());
      }
    } catch (const beast::system_error& error) {
      connection_.reset();
      throw unavailable(error.code() == beast::error::timeout ? "is silent" : "broke off its answer");
    } catch (...) {
      connection_.reset();
      throw;
    }
    on_complete(parser, on_body);
  }

  template <class OnBody>
  void on_complete(http::response_parser<http::string_body>& parser, const OnBody& on_body) {
    if (!parser.get().keep_alive()) connection_.reset();
    if (parser.get().result_int() != 200) {
      throw unavailable(fmt::format("answers {}: {}", parser.get().result_int(), parser.get().body()));
    }
    on_body(parser.get().body());
  }

  void connect() {
    if (connection_) return;
    asio::ip::tcp::resolver resolver(io_);
    boost::system::error_code error;
    const auto addresses = resolver.resolve(url_.host, url_.port, error);
    if (error) throw unavailable("is not found");
    connection_.emplace(io_);
    buffer_.clear();
    await([&](auto handler) {
      connection_->async_connect(addresses, [handler = std::move(handler)](
                                                beast::error_code status, const auto&) mutable { handler(status, 0); });
    });
    connection_->socket().set_option(asio::ip::tcp::no_delay(true));
  }

  void send(const Request& request) {
    await([&](auto handler) { http::async_write(*connection_, request, std::move(handler)); });
  }

  void read_head(http::response_parser<http::string_body>& parser) {
    await([&](auto handler) { http::async_read_header(*connection_, buffer_, parser, std::move(handler)); });
  }

  /// Runs one operation to its end; the connection's own timer ends it where nothing happens. Errors: system_error.
  template <class Start>
  void await(const Start& start) {
    beast::error_code result;
    connection_->expires_after(timeout_);
    start([&](beast::error_code status, std::size_t) { result = status; });
    io_.restart();
    io_.run();
    if (result) throw beast::system_error(result);
  }

  Error unavailable(std::string_view what) const {
    return {ErrorCode::Unavailable, fmt::format("the server at {} {}", url_.authority, what)};
  }

  BaseUrl url_;
  std::chrono::seconds timeout_;
  asio::io_context io_{1};
  std::optional<beast::tcp_stream> connection_;
  beast::flat_buffer buffer_;
};

CompletionClient::CompletionClient(const std::string& base_url, std::chrono::seconds timeout)
    : impl_(std::make_unique<Impl>(base_url, timeout)) {}

CompletionClient::~CompletionClient() = default;

Json CompletionClient::get(const std::string& path) {
  return impl_->get(path);
}

StreamedCompletion CompletionClient::stream(const std::string& path, const std::string& body) {
  return impl_->stream(path, body);
}

}  // namespace nibble::server
