// The only file that knows Boost.Beast.
#include "server/http_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <iterator>
#include <optional>
#include <utility>

namespace nibble::server {
namespace {

namespace beast_http = boost::beast::http;
using boost::system::error_code;

/// What may wait for the rest of a line (a chunk header, a trailer) that never ends.
constexpr std::size_t kMaxPendingBytes = 96 * 1024;

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  return std::ranges::equal(a, b, {}, lower, lower);
}

/// A request body as a string that grows with what arrives. Beast's string_body reserves the announced length, which
/// would let idle clients claim max_body_bytes each.
struct GrowingBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool is_request, class Fields>
    reader(beast_http::header<is_request, Fields>& /*header*/, value_type& body) : body_(body) {}
    void init(const boost::optional<std::uint64_t>& /*length*/, error_code& ec) { ec = {}; }
    template <class Buffers>
    std::size_t put(const Buffers& buffers, error_code& ec) {
      const std::size_t size_bytes = boost::asio::buffer_size(buffers);
      const std::size_t offset = body_.size();
      body_.resize(offset + size_bytes);
      boost::asio::buffer_copy(boost::asio::buffer(body_.data() + offset, size_bytes), buffers);
      ec = {};
      return size_bytes;
    }
    void finish(error_code& ec) { ec = {}; }

   private:
    value_type& body_;
  };
};

void split_target(std::string_view target, HttpRequest& request) {
  if (const auto scheme = target.find("://"); scheme != std::string_view::npos && !target.starts_with('/')) {
    const auto path = target.find('/', scheme + 3);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  }
  const auto question_mark = target.find('?');
  request.path = target.substr(0, question_mark);
  if (question_mark != std::string_view::npos) request.query = target.substr(question_mark + 1);
}

}  // namespace

std::optional<std::string_view> HttpRequest::header(std::string_view name) const {
  for (const HttpHeader& field : headers) {
    if (equals_ignoring_case(field.name, name)) return field.value;
  }
  return std::nullopt;
}

struct HttpParser::Impl {
  beast_http::request_parser<GrowingBody> parser;
  std::vector<HttpHeader> headers;
};

HttpParser::HttpParser(const HttpOptions& options) : options_(options), impl_(std::make_unique<Impl>()) {
  impl_->parser.eager(false);  // stop behind the header, see check_header
  impl_->parser.header_limit(static_cast<std::uint32_t>(options.max_header_bytes));
  impl_->parser.body_limit(options.max_body_bytes);
}

HttpParser::~HttpParser() = default;

std::size_t HttpParser::num_body_bytes() const {
  return impl_->parser.get().body().size();
}

std::size_t HttpParser::feed(std::string_view bytes) {
  auto& parser = impl_->parser;
  std::size_t num_used = 0;
  // Beast returns after the header and after a chunk; go on until it is done or wants more.
  while (num_used < bytes.size() && (state_ == State::Header || state_ == State::Body)) {
    error_code ec;
    const std::size_t num_taken = parser.put(boost::asio::buffer(bytes.data() + num_used, bytes.size() - num_used), ec);
    num_used += num_taken;
    const bool needs_more = ec == beast_http::error::need_more;
    if (needs_more && bytes.size() - num_used > kMaxPendingBytes) ec = beast_http::error::header_limit;
    if (ec == beast_http::error::body_limit) {
      fail(413, fmt::format("The request body is larger than {} bytes.", options_.max_body_bytes));
    } else if (ec == beast_http::error::header_limit) {
      fail(431, fmt::format("The request header is larger than {} bytes.", options_.max_header_bytes));
    } else if (ec && !needs_more) {
      fail(400, fmt::format("Not a valid HTTP/1.1 request: {}.", ec.message()));
    } else if (parser.is_header_done()) {
      if (state_ == State::Header) check_header();
      if (state_ == State::Body && parser.is_done()) state_ = State::Done;
    }
    if (needs_more || num_taken == 0) break;
  }
  return num_used;
}

/// What Beast leaves to its users.
void HttpParser::check_header() {
  state_ = State::Body;
  const auto& message = impl_->parser.get();
  // Kept now: Beast adds a chunked body's trailer to the fields, where it could pass for a header that was checked.
  for (const auto& field : message) {
    impl_->headers.push_back(
        {std::string(std::string_view(field.name_string())), std::string(std::string_view(field.value()))});
  }
  impl_->parser.eager(true);
  keep_alive_ = impl_->parser.keep_alive();
  is_http_1_0_ = message.version() < 11;
  if (static_cast<std::size_t>(std::distance(message.begin(), message.end())) > options_.max_num_headers) {
    return fail(431, fmt::format("The request has more than {} header fields.", options_.max_num_headers));
  }
  // Beast takes an unknown coding for no body at all, so that what follows would be read as the next request, and
  // "gzip, chunked" for chunked alone.
  const auto [first, last] = message.equal_range(beast_http::field::transfer_encoding);
  const bool is_plain = std::distance(first, last) == 1 && equals_ignoring_case(first->value(), "chunked");
  if (first != last && !is_plain) {
    return fail(501, "Transfer-Encoding: only chunked is supported.");
  }
  const std::string_view expectation = message[beast_http::field::expect];
  if (expectation.empty() || is_http_1_0_) return;
  if (!equals_ignoring_case(expectation, "100-continue")) {
    return fail(417, "Expect: only 100-continue is supported.");
  }
  expects_continue_ = true;
}

void HttpParser::fail(int status, std::string message) {
  state_ = State::Failed;
  failure_status_ = status;
  failure_ = std::move(message);
}

HttpRequest HttpParser::take_request() {
  auto message = impl_->parser.release();
  HttpRequest request;
  request.method = std::string_view(message.method_string());
  split_target(message.target(), request);
  request.headers = std::move(impl_->headers);
  request.body = std::move(message.body());
  return request;
}

}  // namespace nibble::server
