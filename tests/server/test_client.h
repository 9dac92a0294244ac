#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace nibble::server {

struct Reply {
  int status = 0;                              // 0: the connection ended before a complete answer
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
  bool is_complete = false;

  Json json() const { return Json::parse(body); }
  /// The JSON of every "data:" line but [DONE].
  std::vector<Json> events() const;
  bool is_done() const { return body.ends_with("data: [DONE]\n\n"); }
};

/// A blocking TCP client on 127.0.0.1 that sends exactly the bytes it is told. Every wait ends after ten seconds.
class TestClient {
 public:
  TestClient();  // not connected yet
  explicit TestClient(std::uint16_t port, int receive_buffer_bytes = 0);
  ~TestClient();
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  void connect(std::uint16_t port);
  /// False where the server has closed the connection.
  bool send(std::string_view bytes);
  Reply receive(bool is_head = false);
  /// Waits until `text` has arrived; what came so far stays for `receive`.
  bool wait_for(std::string_view text);
  /// Whether the server ends the connection within `timeout`; discards what it sends until then.
  bool is_closed_within(std::chrono::milliseconds timeout);
  void half_close();
  void close();
  /// Ends the connection with RST.
  void reset();

  Reply get(std::string_view path, std::string_view headers = "");
  Reply post(std::string_view path, const Json& body, std::string_view headers = "");
  Reply post_text(std::string_view path, std::string_view body, std::string_view headers = "");

 private:
  bool receive_some();
  int socket_ = -1;
  std::string received_;
};

/// POST with JSON headers, as bytes.
std::string post_text(std::string_view path, std::string_view body, std::string_view headers = "");

}  // namespace nibble::server
