#include "test_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

namespace nibble::server {
namespace {

constexpr int kTimeoutMs = 10'000;

std::string lower(std::string_view text) {
  std::string lowered(text);
  std::ranges::transform(lowered, lowered.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lowered;
}

std::size_t parse_number(std::string_view text, int base) {
  std::size_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, base);
  return value;
}

/// Status line and fields; `text` ends before the empty line.
Reply parse_head(std::string_view text) {
  Reply reply;
  reply.status = static_cast<int>(parse_number(text.substr(9, 3), 10));
  while (true) {
    const auto end = text.find("\r\n");
    if (end == std::string_view::npos) return reply;
    text.remove_prefix(end + 2);
    const std::string_view line = text.substr(0, text.find("\r\n"));
    const auto colon = line.find(": ");
    if (colon != std::string_view::npos) reply.headers[lower(line.substr(0, colon))] = line.substr(colon + 2);
  }
}

}  // namespace

std::vector<Json> Reply::events() const {
  std::vector<Json> events;
  std::string_view rest = body;
  while (!rest.empty()) {
    const auto end = rest.find("\n\n");
    EXPECT_NE(end, std::string_view::npos) << "an event without its end: " << rest;
    if (end == std::string_view::npos) break;
    const std::string_view event = rest.substr(0, end);
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    if (event != "data: [DONE]") events.push_back(Json::parse(event.substr(6)));
    rest.remove_prefix(end + 2);
  }
  return events;
}

TestClient::TestClient() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}

TestClient::TestClient(std::uint16_t port, int receive_buffer_bytes) : TestClient() {
  if (receive_buffer_bytes > 0) {
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
  }
  connect(port);
}

void TestClient::connect(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) close();
}

TestClient::~TestClient() {
  close();
}

bool TestClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool TestClient::receive_some() {
  pollfd descriptor{socket_, POLLIN, 0};
  if (::poll(&descriptor, 1, kTimeoutMs) <= 0) return false;
  char buffer[64 * 1024];
  const ssize_t size = ::recv(socket_, buffer, sizeof buffer, 0);
  if (size <= 0) return false;
  received_.append(buffer, static_cast<std::size_t>(size));
  return true;
}

Reply TestClient::receive(bool is_head) {
  while (received_.find("\r\n\r\n") == std::string::npos) {
    if (!receive_some()) return {};
  }
  const auto head_end = received_.find("\r\n\r\n");
  Reply reply = parse_head(std::string_view(received_).substr(0, head_end));
  received_.erase(0, head_end + 4);
  if (reply.status == 100 || is_head || reply.status == 204) {
    reply.is_complete = true;
    return reply;
  }
  if (reply.headers.contains("content-length")) {
    const std::size_t size = parse_number(reply.headers["content-length"], 10);
    while (received_.size() < size && receive_some()) {
    }
    reply.is_complete = received_.size() >= size;
    reply.body = received_.substr(0, size);
    received_.erase(0, size);
    return reply;
  }
  if (!reply.headers.contains("transfer-encoding")) {
    while (receive_some()) {
    }
    reply.body = std::move(received_);
    reply.is_complete = true;
    return reply;
  }
  for (;;) {
    while (received_.find("\r\n") == std::string::npos) {
      if (!receive_some()) return reply;
    }
    const std::size_t line_end = received_.find("\r\n");
    const std::size_t size = parse_number(std::string_view(received_).substr(0, line_end), 16);
    while (received_.size() < line_end + 2 + size + 2) {
      if (!receive_some()) return reply;
    }
    reply.body += received_.substr(line_end + 2, size);
    received_.erase(0, line_end + 2 + size + 2);
    if (size == 0) {
      reply.is_complete = true;
      return reply;
    }
  }
}

bool TestClient::wait_for(std::string_view text) {
  while (received_.find(text) == std::string::npos) {
    if (!receive_some()) return false;
  }
  return true;
}

bool TestClient::is_closed_within(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  char buffer[64 * 1024];
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd descriptor{socket_, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&descriptor, 1, static_cast<int>(left.count())) <= 0) return false;
    if (::recv(socket_, buffer, sizeof buffer, 0) <= 0) return true;
  }
}

void TestClient::half_close() {
  ::shutdown(socket_, SHUT_WR);
}

void TestClient::close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

void TestClient::reset() {
  const linger hard{1, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close();
}

Reply TestClient::get(std::string_view path, std::string_view headers) {
  send(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", path, headers));
  return receive();
}

Reply TestClient::post(std::string_view path, const Json& body, std::string_view headers) {
  return post_text(path, body.dump(), headers);
}

Reply TestClient::post_text(std::string_view path, std::string_view body, std::string_view headers) {
  send(server::post_text(path, body, headers));
  return receive();
}

std::string post_text(std::string_view path, std::string_view body, std::string_view headers) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}",
                     path, body.size(), headers, body);
}

}  // namespace nibble::server
