// What is wrong with a body, and what is only odd.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "openai_fixture.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;

struct BadBody {
  const char* name;
  const char* path;
  std::string body;
  const char* message;  // part of it
};
class OpenAiBadBody : public OpenAi, public testing::WithParamInterface<BadBody> {};

TEST_P(OpenAiBadBody, Is400AndOthersAreStillServed) {
  start();
  const BadBody& bad = GetParam();
  const std::string path = std::string("/v1/") + bad.path;
  const Reply reply = TestClient(port()).post_text(path, bad.body);
  ASSERT_EQ(reply.status, 400) << reply.body;
  EXPECT_LT(reply.body.size(), 3'000);
  EXPECT_THAT(reply.json()["error"]["message"].get<std::string>(), HasSubstr(bad.message));
  EXPECT_EQ(reply.json()["error"]["code"], 400);
  EXPECT_EQ(complete({{"prompt", "hi"}}).status, 200);
}

std::string with(std::string_view fields) {
  return fmt::format(R"({{"prompt": "hi", {}}})", fields);
}
std::string chat_with(std::string_view fields) {
  return fmt::format(R"({{"messages": [{{"role": "user", "content": "hi"}}], {}}})", fields);
}

std::string many_keys() {
  std::string text = R"({"prompt": "hi", "logit_bias": {)";
  for (int i = 0; i < 100'000; ++i) text += fmt::format(R"({}"{}": 1)", i == 0 ? "" : ",", i);
  return text + "}}";
}

std::string many_stops() {
  Json body = {{"prompt", "hi"}, {"stop", Json::array()}};
  for (int i = 0; i < 10'000; ++i) body["stop"].push_back("s" + std::to_string(i));
  return body.dump();
}

INSTANTIATE_TEST_SUITE_P(
    All, OpenAiBadBody,
    testing::Values(
        BadBody{"Truncated", "completions", R"({"prompt": "hi)", "JSON"},
        BadBody{"TrailingComma", "completions", R"({"prompt": "hi",})", "JSON"},
        BadBody{"Empty", "completions", "", "JSON"},
        BadBody{"NaN", "completions", with(R"("temperature": NaN)"), "JSON"},
        BadBody{"HugeNumber", "completions", with(R"("temperature": 1e999)"), "JSON"},
        BadBody{"Deep", "completions", std::string(100'000, '['), "nested"},
        BadBody{"Array", "completions", "[]", "object"}, BadBody{"Number", "completions", "42", "object"},
        BadBody{"Null", "completions", "null", "object"}, BadBody{"String", "completions", "\"x\"", "object"},
        BadBody{"InvalidUtf8", "completions", "{\"prompt\": \"\xff\xfe\"}", "JSON"},
        BadBody{"LoneSurrogate", "completions", R"({"prompt": "\ud800"})", "JSON"},
        BadBody{"NoPrompt", "completions", "{}", "Either prompt or prompt_embeds must be provided and non-empty."},
        BadBody{"EmptyPrompt", "completions", R"({"prompt": ""})", "non-empty"},
        BadBody{"EmptyList", "completions", R"({"prompt": []})", "non-empty"},
        BadBody{"ListOfEmpty", "completions", R"({"prompt": [[]]})", "non-empty"},
        BadBody{"PromptOfObjects", "completions", R"({"prompt": [{}]})", "prompt"},
        BadBody{"NegativeToken", "completions", R"({"prompt": [-1]})", "out of vocabulary"},
        BadBody{"TokenBeyondVocabulary", "completions", R"({"prompt": [260]})", "out of vocabulary"},
        BadBody{"TokenBeyond64Bits", "completions", R"({"prompt": [18446744073709551615]})", "out of vocabulary"},
        BadBody{"FractionalToken", "completions", R"({"prompt": [1.5]})", "integers"},
        BadBody{"TooManyPrompts", "completions",
                [] {
                  Json body = {{"prompt", std::vector<std::string>(100'000, "x")}};
                  return body.dump();
                }(),
                "at most 16384"},
        BadBody{"NZero", "completions", with(R"("n": 0)"), "n must be at least 1"},
        BadBody{"NHuge", "completions", with(R"("n": 2147483648)"), "n must be at most 16384"},
        BadBody{"MaxTokensZero", "completions", with(R"("max_tokens": 0)"), "max_tokens must be at least 1"},
        BadBody{"MaxTokensNegative", "completions", with(R"("max_tokens": -1)"), "max_tokens"},
        BadBody{"MaxTokensBeyond64Bits", "completions", with(R"("max_tokens": 9223372036854775808)"), "max_tokens"},
        BadBody{"MaxTokensHuge", "completions", with(R"("max_tokens": 4000000000000000000)"),
                "maximum context length is 1024 tokens. However, you requested"},
        BadBody{"TemperatureNegative", "completions", with(R"("temperature": -0.1)"), "temperature"},
        BadBody{"TemperatureText", "completions", with(R"("temperature": "0.5")"), "temperature"},
        BadBody{"TopPZero", "completions", with(R"("top_p": 0)"), "top_p must be in (0, 1]"},
        BadBody{"TopPAboveOne", "completions", with(R"("top_p": 1.01)"), "top_p"},
        BadBody{"TopKNegative", "completions", with(R"("top_k": -5)"), "top_k"},
        BadBody{"MinPTwo", "completions", with(R"("min_p": 2)"), "min_p"},
        BadBody{"PenaltyZero", "completions", with(R"("repetition_penalty": 0)"), "repetition_penalty"},
        BadBody{"PenaltyThatOverflowsLogits", "completions", with(R"("repetition_penalty": 1e-40)"),
                "repetition_penalty must be in [1e-06, 1000000], got 1e-40"},
        BadBody{"PresenceTooLarge", "completions", with(R"("presence_penalty": 3)"), "presence_penalty"},
        BadBody{"SeedBeyond64Bits", "completions", with(R"("seed": 18446744073709551616)"), "seed"},
        BadBody{"EmptyStop", "completions", with(R"("stop": ["a", ""])"), "empty"},
        BadBody{"ManyStops", "completions", many_stops(), "stop"},
        BadBody{"LongStop", "completions", with(fmt::format(R"("stop": "{}")", std::string(1'000'000, 's'))), "stop"},
        BadBody{"StopOfNumbers", "completions", with(R"("stop": [1])"), "stop"},
        BadBody{"StopTokenBeyondVocabulary", "completions", with(R"("stop_token_ids": [260])"), "out of vocabulary"},
        BadBody{"LogitBiasKeys", "completions", with(R"("logit_bias": {"x": 1, "5": 1, "260": 1, "-1": 1})"),
                "x, 260, -1 are no token ids of the model's vocabulary (size 260)"},
        BadBody{"LogitBiasManyKeys", "completions", many_keys(), "more than 4096 keys"},
        BadBody{"LogprobsTooMany", "completions", with(R"("logprobs": 21)"), "max-logprobs"},
        BadBody{"LogprobsNegative", "completions", with(R"("logprobs": -1)"), "logprobs"},
        BadBody{"MinTokensAboveMax", "completions", with(R"("min_tokens": 5, "max_tokens": 3)"), "min_tokens"},
        BadBody{"StreamOptionsWithoutStream", "completions", with(R"("stream_options": {})"), "stream_options"},
        BadBody{"Suffix", "completions", with(R"("suffix": "x")"), "suffix is not supported"},
        BadBody{"CacheSaltType", "completions", with(R"("cache_salt": 3)"), "cache_salt"},
        BadBody{"JsonSchema", "completions", with(R"("response_format": {"type": "json_schema"})"), "not supported"},
        BadBody{"Structured", "completions", with(R"("structured_outputs": {"regex": "(a+)+$"})"), "not supported"},
        BadBody{"ContextOverflow", "completions", with(R"("max_tokens": 2000)"),
                "This model's maximum context length is 1024 tokens. However, you requested 2003 tokens (3 in the "
                "prompt, 2000 for the completion)"},
        BadBody{"PromptOverflow", "completions", fmt::format(R"({{"prompt": "{}"}})", std::string(2'000, 'x')),
                "However, you requested at least 2002 tokens"},
        BadBody{"PromptOfTenMegabytes", "completions",
                fmt::format(R"({{"prompt": "{}"}})", std::string(10'000'000, ' ')),
                "more than that many tokens can spell"},
        BadBody{"NoMessages", "chat/completions", "{}", "messages"},
        BadBody{"MessagesEmpty", "chat/completions", R"({"messages": []})", "messages must not be empty"},
        BadBody{"MessageNoObject", "chat/completions", R"({"messages": ["hi"]})", "messages[0]"},
        BadBody{"MessageWithoutRole", "chat/completions", R"({"messages": [{"content": "x"}]})", "role"},
        BadBody{"MessagesOfTenMegabytes", "chat/completions",
                fmt::format(R"({{"messages": [{{"role": "user", "content": "{}"}}]}})", std::string(10'000'000, ' ')),
                "more than that many tokens can spell"},
        BadBody{"MessageWithImage", "chat/completions",
                R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})",
                "image_url are not supported"},
        BadBody{"TopLogprobsAlone", "chat/completions", chat_with(R"("top_logprobs": 2)"), "logprobs must be set"},
        BadBody{"RequestTemplate", "chat/completions", chat_with(R"("chat_template": "x")"), "chat_template"},
        BadBody{"KwargsOverride", "chat/completions", chat_with(R"("chat_template_kwargs": {"messages": []})"),
                "must not set messages"},
        BadBody{"KwargsTokenize", "chat/completions", chat_with(R"("chat_template_kwargs": {"tokenize": true})"),
                "must not set tokenize"}),
    [](const auto& bad) { return std::string(bad.param.name); });

TEST_F(OpenAi, OddButValidBodiesAreAnswered) {
  start();
  const auto status = [&](std::string_view body) {
    return TestClient(port()).post_text("/v1/completions", body).status;
  };
  EXPECT_EQ(status("\xef\xbb\xbf{\"prompt\": \"hi\"}"), 200) << "byte order mark";
  EXPECT_EQ(status(R"({"prompt": "no", "prompt": "hi"})"), 200) << "duplicate key: the last one counts";
  EXPECT_EQ(engine->last_prompt().back(), 'i');
  EXPECT_EQ(status(R"({"prompt": "a\u0000b", "stop": "\u0000c"})"), 200) << "NUL";
  EXPECT_EQ(status(R"({"prompt": "hi", "max_tokens": 3.0, "seed": -5})"), 200) << "whole floats";
}

TEST_F(OpenAi, OtherContentTypesAreRefused) {
  start();
  TestClient client(port());
  client.send("POST /v1/completions HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(client.receive().status, 415);
}

TEST_F(OpenAi, ManyClientsGetTheirOwnAnswers) {
  start({.step_time = std::chrono::microseconds(100)});
  std::vector<std::jthread> clients;
  std::vector<std::string> texts(32);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([&, i] {
      const Reply reply = complete({{"prompt", fmt::format("client {}", i)}, {"max_tokens", 40}, {"stream", true}});
      for (const Json& event : reply.events()) texts[i] += event["choices"][0]["text"].get<std::string>();
    });
  }
  clients.clear();
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i], fmt::format("echo:client {}", i));
}

}  // namespace
}  // namespace nibble::server
