// Bytes on the wire: what HTTP clients, broken and hostile ones included, may send, and when they may leave.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "server_fixture.h"

namespace nibble::server {
namespace {

using namespace std::chrono_literals;

class Http : public ServerTest {
 protected:
  /// Status of the answer to these raw bytes; 0 where the server just closes.
  int status_of(std::string_view bytes) const {
    TestClient client(port());
    client.send(bytes);
    return client.receive().status;
  }
  bool answers() const { return get("/health").status == 200; }
};

const Json kShort = {{"prompt", "hi"}, {"max_tokens", 3}};

TEST_F(Http, AnswersSeveralRequestsOnOneConnection) {
  start();
  TestClient client(port());
  EXPECT_EQ(client.get("/health").status, 200);
  EXPECT_EQ(client.post("/v1/completions", kShort).status, 200);
  const Reply version = client.get("/version");
  EXPECT_EQ(version.json()["version"], "1.2.3");
  EXPECT_THAT(version.headers.at("date"), testing::EndsWith(" GMT"));
}

TEST_F(Http, AnswersPipelinedRequestsInOrder) {
  start();
  TestClient client(port());
  client.send(post_text("/v1/completions", kShort.dump()) +
              "GET /version HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\n");
  EXPECT_EQ(client.receive().json()["object"], "text_completion");
  EXPECT_EQ(client.receive().json()["version"], "1.2.3");
  EXPECT_EQ(client.receive().status, 404);
}

TEST_F(Http, ReadsARequestThatArrivesByteByByte) {
  start();
  TestClient client(port());
  for (const char c : post_text("/v1/completions", kShort.dump())) client.send(std::string_view(&c, 1));
  EXPECT_EQ(client.receive().status, 200);
}

TEST_F(Http, ReadsChunkedBodies) {
  start();
  TestClient client(port());
  client.send(
      "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\n{\"pro\r\nc;ext=1\r\nmpt\": \"hello\r\n2\r\n\"}\r\n0\r\n\r\n");
  const Reply reply = client.receive();
  EXPECT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(client.get("/health").status, 200);
}

TEST_F(Http, ReadsAnEmptyChunkedBodyByteByByte) {
  start();
  TestClient client(port());
  const std::string_view request = "GET /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
  for (const char c : request) client.send(std::string_view(&c, 1));
  EXPECT_EQ(client.receive().status, 200);
}

TEST_F(Http, AsksForTheBodyWhenTheClientExpectsIt) {
  start();
  TestClient client(port());
  client.send(
      fmt::format("POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
                  "Expect: 100-continue\r\n\r\n",
                  kShort.dump().size()));
  EXPECT_EQ(client.receive().status, 100);
  client.send(kShort.dump());
  EXPECT_EQ(client.receive().status, 200);
  EXPECT_EQ(status_of("GET /health HTTP/1.1\r\nExpect: tea\r\n\r\n"), 417);
}

TEST_F(Http, RefusesALargeBodyBeforeItIsSent) {
  http.max_body_bytes = 1000;
  start();
  TestClient client(port());
  client.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n");
  const Reply reply = client.receive();
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.json()["error"]["code"], 413);
  EXPECT_TRUE(client.is_closed_within(5s));
}

TEST_F(Http, BoundsAllBodiesTogetherWhileTheyArrive) {
  http.max_total_body_bytes = 1'500;
  start();
  const std::string body = kShort.dump() + std::string(1'000, ' ');
  const std::string request = post_text("/v1/completions", body);
  // Which of two bodies the server reads first is its affair: tried until it was the one that stays incomplete.
  bool is_bounded = false;
  for (int i = 0; i < 1'000 && !is_bounded; ++i) {
    TestClient slow(port());
    slow.send(std::string_view(request).substr(0, request.size() - 1));
    const Reply other = TestClient(port()).post_text("/v1/completions", body);
    slow.send(" ");
    const int slow_status = slow.receive().status;
    if (other.status == 200) continue;
    EXPECT_EQ(other.status, 503);
    EXPECT_THAT(other.body, testing::HasSubstr("bytes of request bodies already; try again later"));
    EXPECT_EQ(slow_status, 200);
    is_bounded = true;
  }
  EXPECT_TRUE(is_bounded);
  int status = 0;
  for (int i = 0; i < 1'000 && status != 200; ++i) {  // an answer may come a moment before its body goes
    status = TestClient(port()).post_text("/v1/completions", body).status;
  }
  EXPECT_EQ(status, 200);
}

TEST_F(Http, ARunningAnswerHoldsNoBody) {
  http.max_total_body_bytes = 1'500;
  // Slow enough that a client that does not read is not dropped meanwhile.
  start({.max_model_len = 1'000'000, .step_time = 1ms});
  const std::string padding(1'000, ' ');
  TestClient running(port());
  running.send(post_text("/v1/completions",
                         R"({"prompt": "hi", "max_tokens": 900000, "ignore_eos": true, "stream": true})" + padding));
  EXPECT_TRUE(running.wait_for("data: "));
  int status = 0;
  for (int i = 0; i < 1'000 && status != 200; ++i) {  // the first event may come a moment before the body goes
    status = TestClient(port()).post_text("/v1/completions", kShort.dump() + padding).status;
  }
  EXPECT_EQ(status, 200);
}

TEST_F(Http, AnswersTooLargeEvenWhileTheClientIsStillSending) {
  http.max_body_bytes = 1000;
  start();
  const std::string huge(8'000'000, 'x');
  EXPECT_EQ(TestClient(port()).post_text("/v1/completions", huge).status, 413);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + std::string(2000, 'x')), 413);
}

TEST_F(Http, RefusesCompressedBodies) {
  start();
  const Reply reply = TestClient(port()).post_text("/v1/completions", "\x1f\x8b", "Content-Encoding: gzip\r\n");
  EXPECT_EQ(reply.status, 415);
  EXPECT_NE(reply.body.find("Compressed"), std::string::npos);
}

TEST_F(Http, AnswersHttp10AndThenCloses) {
  start();
  TestClient client(port());
  client.send("GET /version HTTP/1.0\r\n\r\n");
  const Reply reply = client.receive();
  EXPECT_EQ(reply.json()["version"], "1.2.3");
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_TRUE(client.is_closed_within(5s));
  TestClient persistent(port());
  persistent.send("GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(persistent.receive().headers.at("connection"), "keep-alive");
}

TEST_F(Http, StreamsToHttp10WithoutChunks) {
  start();
  TestClient client(port());
  const std::string body = R"({"prompt": "hi", "max_tokens": 3, "stream": true})";
  client.send(fmt::format("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}", body.size(), body));
  const Reply reply = client.receive();
  EXPECT_FALSE(reply.headers.contains("transfer-encoding"));
  EXPECT_TRUE(reply.is_done());
}

TEST_F(Http, TakesAbsoluteTargetsAndQueries) {
  start();
  EXPECT_EQ(status_of("GET http://example.com/health HTTP/1.1\r\nHost: example.com\r\n\r\n"), 200);
  EXPECT_EQ(status_of("GET /health?probe=1 HTTP/1.1\r\n\r\n"), 200);
  EXPECT_EQ(status_of("GET /health HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                      "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"),
            200);
}

TEST_F(Http, AnswersHeadWithoutABody) {
  start();
  TestClient client(port());
  client.send("HEAD /version HTTP/1.1\r\n\r\n");
  const Reply reply = client.receive(/*is_head=*/true);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("content-length"), std::to_string(std::string_view(R"({"version":"1.2.3"})").size()));
  EXPECT_EQ(client.get("/health").status, 200);
}

TEST_F(Http, SkipsEmptyLinesBeforeARequest) {
  start();
  EXPECT_EQ(status_of("\r\n\r\nGET /health HTTP/1.1\r\n\r\n"), 200);
}

struct BadBytes {
  const char* name;
  std::string bytes;
  int status;
};
class HttpBadBytes : public Http, public testing::WithParamInterface<BadBytes> {};

TEST_P(HttpBadBytes, AreRefusedAndOthersStillServed) {
  start();
  EXPECT_EQ(status_of(GetParam().bytes), GetParam().status);
  EXPECT_TRUE(answers());
}

std::string post_with(std::string_view headers, std::string_view body) {
  return fmt::format("POST /v1/completions HTTP/1.1\r\n{}\r\n\r\n{}", headers, body);
}

INSTANTIATE_TEST_SUITE_P(
    All, HttpBadBytes,
    testing::Values(
        BadBytes{"Garbage", std::string("\x00\xff\x16\x03\x01 nonsense\r\n\r\n", 18), 400},
        BadBytes{"TlsHello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(64, 'r'),
                 400},
        BadBytes{"Http09", "GET /health\r\n\r\n", 400}, BadBytes{"Http2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
        BadBytes{"RequestLineOfAMegabyte", "GET /" + std::string(1'000'000, 'a') + " HTTP/1.1\r\n\r\n", 431},
        BadBytes{"HeaderOfTenMegabytes", "GET / HTTP/1.1\r\nX: " + std::string(10'000'000, 'a') + "\r\n\r\n", 431},
        BadBytes{"TenThousandHeaders",
                 [] {
                   std::string text = "GET / HTTP/1.1\r\n";
                   for (int i = 0; i < 10'000; ++i) text += fmt::format("X{}: y\r\n", i);
                   return text + "\r\n";
                 }(),
                 431},
        BadBytes{"ManyShortHeaders",
                 [] {
                   std::string text = "GET / HTTP/1.1\r\n";
                   for (int i = 0; i < 300; ++i) text += "a: b\r\n";
                   return text + "\r\n";
                 }(),
                 431},
        BadBytes{"NegativeContentLength", post_with("Content-Length: -1", ""), 400},
        BadBytes{"ContentLengthBeyond64Bits", post_with("Content-Length: 99999999999999999999999", ""), 400},
        BadBytes{"HugeContentLength", post_with("Content-Length: 18446744073709551615", ""), 413},
        BadBytes{"TwoContentLengths", post_with("Content-Length: 2\r\nContent-Length: 3", "{}}"), 400},
        BadBytes{"ContentLengthAndChunked", post_with("Content-Length: 2\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
                 400},
        BadBytes{"UnknownTransferEncoding", post_with("Transfer-Encoding: gzip", ""), 501},
        BadBytes{"GzipUnderChunked", post_with("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), 501},
        BadBytes{"NegativeChunk", post_with("Transfer-Encoding: chunked", "-2\r\n{}\r\n0\r\n\r\n"), 400},
        BadBytes{"HugeChunk", post_with("Transfer-Encoding: chunked", "FFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"), 413},
        BadBytes{"ChunkBeyond64Bits", post_with("Transfer-Encoding: chunked", "FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"),
                 400},
        BadBytes{"EndlessChunkHeader", post_with("Transfer-Encoding: chunked", "1;" + std::string(300'000, 'x')), 431},
        BadBytes{"BareLineFeeds", "GET /health HTTP/1.1\nHost: x\n\n", 400},
        BadBytes{"SpaceBeforeColon", "GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400},
        BadBytes{"NulInHeader", std::string("GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n", 32), 400}),
    [](const auto& bad) { return std::string(bad.param.name); });

TEST_F(Http, WaitsForeverForNoHeader) {
  http.header_timeout = 200ms;
  start();
  TestClient client(port());
  client.send("GET /health HTTP/1.1\r\nX-Slow: ");
  const auto start_time = std::chrono::steady_clock::now();
  EXPECT_EQ(client.receive().status, 408);
  EXPECT_LT(std::chrono::steady_clock::now() - start_time, 5s);
  EXPECT_TRUE(client.is_closed_within(5s));
}

TEST_F(Http, WaitsForeverForNoBody) {
  http.body_timeout = 200ms;
  start();
  EXPECT_EQ(status_of("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"), 408);
}

TEST_F(Http, ClosesIdleConnections) {
  http.idle_timeout = 200ms;
  start();
  TestClient silent(port());
  EXPECT_TRUE(silent.is_closed_within(5s));
  TestClient kept(port());
  EXPECT_EQ(kept.get("/health").status, 200);
  EXPECT_TRUE(kept.is_closed_within(5s));
}

TEST_F(Http, AClientThatDisconnectsCancelsItsRequest) {
  start({.step_time = 200us});
  const std::string request =
      post_text("/v1/completions", R"({"prompt": "hi", "max_tokens": 1000, "ignore_eos": true})");
  TestClient bystander(port());
  bystander.send(request);
  for (int i = 0; i < 50; ++i) {
    TestClient client(port());
    client.send(request);
    if (i % 2 == 0) client.reset();
  }
  const Reply reply = bystander.receive();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.json()["usage"]["completion_tokens"], 1000);
  EXPECT_TRUE(engine->wait_until_cancelled(40));  // the last ones may have been reset before they were read
  EXPECT_TRUE(engine->wait_until_idle());
}

TEST_F(Http, AClientThatDisconnectsMidStreamCancelsItsRequest) {
  start({.step_time = 200us});
  for (int i = 0; i < 50; ++i) {
    TestClient client(port());
    client.send(post_text("/v1/chat/completions",
                          R"({"messages": [{"role": "user", "content": "hi"}], "stream": true, "ignore_eos": true})"));
    ASSERT_TRUE(client.wait_for("\"content\":\"e\""));
  }
  EXPECT_TRUE(engine->wait_until_cancelled(50));
  EXPECT_TRUE(engine->wait_until_idle());
  EXPECT_NE(get("/metrics").body.find("vllm:num_requests_running{engine=\"0\",model_name=\"fake\"} 0"),
            std::string::npos);
}

TEST_F(Http, AHalfClosedClientGetsWhatIsReady) {
  start();
  TestClient client(port());
  client.send("GET /version HTTP/1.1\r\n\r\n");
  client.half_close();
  EXPECT_EQ(client.receive().status, 200);
}

TEST_F(Http, AHalfClosedClientEndsItsGeneration) {
  start({.step_time = 1ms});
  TestClient client(port());
  client.send(post_text("/v1/completions", R"({"prompt": "hi", "max_tokens": 1000, "ignore_eos": true})"));
  client.half_close();
  EXPECT_EQ(client.receive().json()["choices"][0]["finish_reason"], "abort");
  EXPECT_TRUE(engine->wait_until_idle());
}

TEST_F(Http, AClientThatNeverReadsIsDroppedAndOthersAreServed) {
  http.max_unsent_bytes = 256 * 1024;
  start({.max_model_len = 1'000'000, .token_repeat = 64 * 1024});
  TestClient sleeper(port(), /*receive_buffer_bytes=*/4096);
  sleeper.send(
      post_text("/v1/completions", R"({"prompt": "hi", "max_tokens": 900000, "ignore_eos": true, "stream": true})"));
  EXPECT_TRUE(engine->wait_until_cancelled(1));  // 900,000 tokens of 64 KiB would take far longer
  EXPECT_TRUE(answers());
}

TEST_F(Http, PipeliningWithoutReadingDoesNotPileUpAnswers) {
  http.write_timeout = 500ms;
  start();
  TestClient client(port(), /*receive_buffer_bytes=*/4096);
  std::string requests;
  for (int i = 0; i < 1000; ++i) requests += "GET /metrics HTTP/1.1\r\n\r\n";
  bool is_open = true;  // until the server stops reading, its write times out and it hangs up
  for (int i = 0; i < 1000 && is_open; ++i) is_open = client.send(requests);
  EXPECT_FALSE(is_open);
  EXPECT_TRUE(answers());
}

TEST_F(Http, OutOfDescriptorsItClosesTheLongestIdleConnections) {
  start();
  std::vector<std::unique_ptr<TestClient>> idle;
  for (int i = 0; i < 60; ++i) {
    idle.push_back(std::make_unique<TestClient>(port()));
    EXPECT_EQ(idle.back()->get("/health").status, 200);
  }
  TestClient late;  // its descriptor is there already: only the server's end needs one
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit tight = before;
  tight.rlim_cur = 64;
  setrlimit(RLIMIT_NOFILE, &tight);
  late.connect(port());
  EXPECT_EQ(late.get("/health").status, 200);
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_TRUE(idle.front()->is_closed_within(1s));
  EXPECT_EQ(idle.back()->get("/health").status, 200);
}

TEST_F(Http, ATakenPortIsOneClearError) {
  start();
  HttpOptions second = http;
  second.port = port();
  try {
    ApiServer other(second, access);
    FAIL() << "two servers on a port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unavailable);
    EXPECT_NE(std::string(error.what()).find("already in use"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(std::to_string(port())), std::string::npos) << error.what();
  }
}

TEST_F(Http, AHostThatDoesNotResolveIsAClearError) {
  HttpOptions options;
  options.host = "no such host";
  EXPECT_THROW(ApiServer(options, access), Error);
}

TEST_F(Http, TakesAnIpv6Host) {
  http.host = "::1";
  HttpOptions options = http;
  options.port = 0;
  try {
    ApiServer on_loopback(options, access);
    EXPECT_NE(on_loopback.port(), 0);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
}

}  // namespace
}  // namespace nibble::server
