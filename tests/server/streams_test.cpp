// Streamed answers of both endpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "openai_fixture.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(OpenAi, StreamedCompletionsSayTheSameAsWholeOnes) {
  start();
  const Json body = {{"prompt", Json::array({"ab", "cde"})}, {"n", 2}, {"max_tokens", 9}};
  Json streamed = body;
  streamed["stream"] = true;
  const Json whole = complete(body).json();
  const Reply reply = complete(streamed);
  EXPECT_THAT(reply.headers.at("content-type"), StartsWith("text/event-stream"));
  EXPECT_TRUE(reply.is_done());
  std::vector<std::string> texts(4);
  std::vector<std::string> finish_reasons(4);
  std::set<std::string> ids;
  for (const Json& event : reply.events()) {
    ids.insert(event["id"].get<std::string>());
    EXPECT_FALSE(event.contains("usage"));
    ASSERT_EQ(event["choices"].size(), 1);
    const Json& choice = event["choices"][0];
    const auto index = choice["index"].get<std::size_t>();
    EXPECT_EQ(finish_reasons[index], "") << "nothing comes after the last chunk";
    texts[index] += choice["text"].get<std::string>();
    if (!choice["finish_reason"].is_null()) finish_reasons[index] = choice["finish_reason"];
  }
  EXPECT_EQ(ids.size(), 1);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(texts[i], whole["choices"][i]["text"]);
    EXPECT_EQ(finish_reasons[i], whole["choices"][i]["finish_reason"]);
  }
}

TEST_F(OpenAi, ChatStreamsFollowVllm) {
  start();
  const Reply reply = chat({{"stream", true}, {"max_tokens", 3}});
  const std::vector<Json> events = reply.events();
  ASSERT_EQ(events.size(), 4);
  for (const Json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_THAT(event["id"].get<std::string>(), StartsWith("chatcmpl-"));
  }
  EXPECT_EQ(events[0]["choices"][0]["delta"], Json::parse(R"({"role": "assistant", "content": ""})"));
  EXPECT_EQ(events[1]["choices"][0]["delta"], Json::parse(R"({"content": "e"})"));
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], nullptr);
  EXPECT_EQ(events[3]["choices"][0]["delta"]["content"], "h") << "finish_reason rides on the last content chunk";
  EXPECT_EQ(events[3]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(reply.is_done());
}

TEST_F(OpenAi, UsageComesWhereItIsAskedFor) {
  start();
  const auto usages = [&](const Json& options) {
    std::vector<Json> events = chat({{"stream", true}, {"max_tokens", 2}, {"stream_options", options}}).events();
    std::string found;
    for (const Json& event : events) found += event.contains("usage") ? 'u' : '-';
    if (found.back() == 'u') {
      EXPECT_EQ(events.back()["choices"], Json::array());
      EXPECT_EQ(events.back()["usage"]["completion_tokens"], 2);
    }
    return found;
  };
  EXPECT_EQ(usages(nullptr), "---");
  EXPECT_EQ(usages(Json::object()), "---");
  EXPECT_EQ(usages({{"include_usage", true}}), "---u");
  EXPECT_EQ(usages({{"include_usage", false}, {"continuous_usage_stats", true}}), "---");
  EXPECT_EQ(usages({{"include_usage", true}, {"continuous_usage_stats", true}}), "uuuu");
}

TEST_F(OpenAi, HalfACharacterIsNeverStreamed) {
  start();
  const Reply reply = complete({{"prompt", "é😀"}, {"stream", true}});
  std::string text;
  for (const Json& event : reply.events()) {
    text += event["choices"][0]["text"].get<std::string>();
    EXPECT_THAT(event.dump(), Not(HasSubstr("\uFFFD")));
  }
  EXPECT_EQ(text, "echo:é😀");
}

TEST_F(OpenAi, AFailureMidStreamIsAnErrorEvent) {
  start({.fail_at_token = 3});
  const Reply reply = chat({{"stream", true}});
  EXPECT_EQ(reply.status, 200);
  EXPECT_TRUE(reply.is_done());
  EXPECT_EQ(reply.events().back()["error"]["code"], 500);
  const Reply whole = chat({});
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(whole.json()["error"]["type"], "InternalServerError");
}

TEST_F(OpenAi, AStepWithoutMemoryIsA503) {
  start({.fail_at_token = 3, .fail_with = ErrorCode::OutOfMemory});
  EXPECT_EQ(chat({{"stream", true}}).events().back()["error"]["code"], 503);
  const Reply whole = chat({});
  EXPECT_EQ(whole.status, 503);
  EXPECT_EQ(whole.json()["error"]["type"], "ServiceUnavailableError");
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(OpenAi, ALostDeviceIsA503AndUnhealthy) {
  start({.failure = "the cuda device is lost"});
  EXPECT_EQ(chat({}).status, 503);
  EXPECT_EQ(get("/health").status, 503);
}

}  // namespace
}  // namespace nibble::server
