// The other endpoints, who may call them, and how the server stops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "openai_fixture.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;

TEST_F(OpenAi, ListsTheServedModels) {
  start();
  const Json models = get("/v1/models").json();
  EXPECT_EQ(models["object"], "list");
  ASSERT_EQ(models["data"].size(), 2);
  EXPECT_EQ(models["data"][0]["id"], "fake");
  EXPECT_EQ(models["data"][1]["id"], "alias");
  EXPECT_EQ(models["data"][0]["object"], "model");
  EXPECT_EQ(models["data"][0]["owned_by"], "nibble");
  EXPECT_EQ(models["data"][0]["root"], "/models/fake");
  EXPECT_EQ(models["data"][0]["max_model_len"], 1024);
}

TEST_F(OpenAi, DescribesOneModelByItsName) {
  api.served_model_names = {"org/name", "50%2 done"};
  start();
  for (const char* path : {"/v1/models/org/name", "/v1/models/org%2Fname", "/v1/models/org%2fn%61me"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 200) << path;
    Json card = reply.json();
    Json listed = get("/v1/models").json()["data"][0];
    for (Json* model : {&card, &listed}) model->erase("permission");  // has a random id
    EXPECT_EQ(card, listed);
  }
  EXPECT_EQ(get("/v1/models/50%2%20done").json()["id"], "50%2 done");
  for (const char* path : {"/v1/models/name", "/v1/models/org", "/v1/models/org/name/", "/v1/models/org%252Fname",
                           "/v1/models/%", "/v1/models/%zz", "/v1/models/org%00name"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 404) << path;
    EXPECT_EQ(reply.json()["error"]["type"], "NotFoundError") << path;
  }
  EXPECT_EQ(get("/v1/models/").json()["error"]["type"], "Not Found");
  EXPECT_EQ(post("/v1/models/org/name", {}).headers.at("allow"), "GET");
}

TEST_F(OpenAi, TokenizesAndBack) {
  start();
  const Json answer = post("/tokenize", {{"prompt", "hi"}, {"return_token_strs", true}}).json();
  EXPECT_EQ(answer, Json::parse(R"({"count": 3, "max_model_len": 1024, "tokens": [256, 104, 105],
                                    "token_strs": ["<s>", "h", "i"]})"));
  const Json chat_answer = post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "x"}}}}}).json();
  EXPECT_EQ(chat_answer["count"], std::string_view("user: x\nassistant:").size());
  EXPECT_EQ(post("/detokenize", {{"tokens", {104, 105}}}).json()["prompt"], "hi");
  EXPECT_EQ(post("/detokenize", {{"tokens", {999}}}).status, 400);
}

TEST_F(OpenAi, HealthIsEmptyAnd200) {
  start();
  for (const char* path : {"/health", "/ping"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "");
  }
}

TEST_F(OpenAi, MetricsUseVllmsNames) {
  start();
  TestClient client(port());  // one connection: an answer is counted when it is sent, before the next one is read
  client.post("/v1/completions", {{"prompt", "hi"}, {"max_tokens", 4}});
  client.get("/nothing");
  engine->drain(10);  // the engine forgets a request after its last token went out
  const std::string metrics = client.get("/metrics").body;
  for (const char* line : {"vllm:num_requests_running{engine=\"0\",model_name=\"fake\"} 0", "vllm:kv_cache_usage_perc{",
                           "# TYPE vllm:num_preemptions_total counter",
                           "vllm:request_success_total{engine=\"0\",model_name=\"fake\",finished_reason=\"length\"} 1",
                           "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"fake\"} 1",
                           "vllm:inter_token_latency_seconds_count{engine=\"0\",model_name=\"fake\"} 3",
                           "vllm:e2e_request_latency_seconds_count{engine=\"0\",model_name=\"fake\"} 1",
                           "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"} 1",
                           "http_requests_total{handler=\"none\",method=\"GET\",status=\"4xx\"} 1"}) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
}

TEST_F(OpenAi, UnknownRoutesAndMethodsAnswerJson) {
  start();
  const Reply missing = get("/v1/nothing");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(missing.json()["error"]["type"], "Not Found");
  const Reply wrong = get("/v1/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  for (const char* path : {"/v1/..%2fhealth", "/health%00", "//v1/models", "/v1/models/"}) {
    EXPECT_EQ(get(path).status, 404) << path;
  }
}

TEST_F(OpenAi, RequestIdsBecomePartOfTheAnswersId) {
  access.enable_request_id_headers = true;
  start();
  const Reply reply = post("/v1/completions", {{"prompt", "hi"}}, "X-Request-Id: abc-1\r\n");
  EXPECT_EQ(reply.json()["id"], "cmpl-abc-1");
  EXPECT_EQ(reply.headers.at("x-request-id"), "abc-1");
}

TEST_F(OpenAi, WithoutItsKeyNothingButProbesIsServed) {
  access.api_keys = {"first", "second"};
  start();
  for (const char* path :
       {"/v1/models", "/v1/models/", "/v1/models/fake", "//v1/models", "/v1/nothing", "/health/", "/tokenize"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 401) << path;
    EXPECT_EQ(reply.body, R"({"error":"Unauthorized"})");
  }
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer first\r\n").status, 200);
  EXPECT_EQ(get("/v1/models", "authorization: bEARER second\r\n").status, 200);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer firs\r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer first2\r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Basic first\r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer \r\n").status, 401);
}

TEST_F(OpenAi, OnlyARealPreflightPassesWithoutAKey) {
  access.api_keys = {"key"};
  start();
  TestClient client(port());
  client.send(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nOrigin: http://a\r\nAccess-Control-Request-Method: POST\r\n"
      "Access-Control-Request-Headers: authorization\r\n\r\n");
  const Reply preflight = client.receive();
  EXPECT_EQ(preflight.status, 200);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "*");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "authorization");
  client.send("OPTIONS /v1/chat/completions HTTP/1.1\r\nOrigin: http://a\r\n\r\n");
  EXPECT_EQ(client.receive().status, 401);
  EXPECT_EQ(client.get("/v1/models", "Origin: http://a\r\n").headers.at("access-control-allow-origin"), "*")
      << "a browser must be able to read the 401";
}

TEST_F(OpenAi, NamesOnlyAllowedOrigins) {
  access.allowed_origins = {"http://good"};
  start();
  EXPECT_EQ(get("/health", "Origin: http://good\r\n").headers.at("access-control-allow-origin"), "http://good");
  EXPECT_FALSE(get("/health", "Origin: http://bad\r\n").headers.contains("access-control-allow-origin"));
}

TEST_F(OpenAi, ADrainFinishesWhatRunsAndRefusesTheRest) {
  start({.step_time = std::chrono::milliseconds(1)});
  TestClient running(port());
  TestClient idle(port());
  ASSERT_EQ(idle.get("/health").status, 200);
  running.send(
      post_text("/v1/completions", R"({"prompt": "hi", "max_tokens": 300, "ignore_eos": true, "stream": true})"));
  ASSERT_TRUE(running.wait_for("data:"));
  server->begin_drain();
  const Reply refused = idle.post("/v1/completions", {{"prompt", "hi"}});
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("connection"), "close");
  engine->drain(10);
  server->shut_down(std::chrono::seconds(1));
  const Reply reply = running.receive();
  EXPECT_TRUE(reply.is_done());
  EXPECT_EQ(reply.events().back()["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(server->num_connections(), 0);
}

TEST_F(OpenAi, ADrainThatTakesTooLongAborts) {
  start({.step_time = std::chrono::milliseconds(1)});
  TestClient running(port());
  running.send(
      post_text("/v1/completions", R"({"prompt": "hi", "max_tokens": 1000, "ignore_eos": true, "stream": true})"));
  ASSERT_TRUE(running.wait_for("data:"));
  server->begin_drain();
  engine->drain(0.05);
  server->shut_down(std::chrono::seconds(1));
  const Reply reply = running.receive();
  EXPECT_TRUE(reply.is_complete);
  EXPECT_EQ(reply.events().back()["choices"][0]["finish_reason"], "abort");
}

}  // namespace
}  // namespace nibble::server
