#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "server/http.h"

namespace nibble::server {

/// Bytes → one HTTP/1.x request, within the limits of HttpOptions. One thread uses it.
class HttpParser {
 public:
  enum class State : std::uint8_t { Header, Body, Done, Failed };

  explicit HttpParser(const HttpOptions& options);
  ~HttpParser();
  HttpParser(const HttpParser&) = delete;
  HttpParser& operator=(const HttpParser&) = delete;

  /// Takes what it can use of `bytes` and returns how many that were; the rest must come again, with more behind it.
  /// Bytes after the end of the request are left.
  std::size_t feed(std::string_view bytes);
  State state() const { return state_; }
  /// Of the body, held so far.
  std::size_t num_body_bytes() const;

  /// Once the header is complete: the client waits for "100 Continue" before it sends the body.
  bool expects_continue() const { return expects_continue_; }

  // State::Done
  bool keep_alive() const { return keep_alive_; }
  bool is_http_1_0() const { return is_http_1_0_; }
  HttpRequest take_request();

  // State::Failed
  int failure_status() const { return failure_status_; }
  const std::string& failure() const { return failure_; }

 private:
  struct Impl;
  void check_header();
  void fail(int status, std::string message);

  const HttpOptions& options_;
  std::unique_ptr<Impl> impl_;
  State state_ = State::Header;
  bool expects_continue_ = false;
  bool keep_alive_ = false;
  bool is_http_1_0_ = false;
  int failure_status_ = 0;
  std::string failure_;
};

}  // namespace nibble::server
