// POST /v1/chat/completions: templates, tools, log probabilities.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "openai_fixture.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(OpenAi, ChatHasOpenAisShape) {
  start();
  const Json answer = chat({{"max_completion_tokens", 4}, {"max_tokens", 9}}).json();
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "echo") << "max_completion_tokens wins";
  EXPECT_EQ(answer["choices"][0]["message"]["refusal"], nullptr);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_FALSE(answer["choices"][0]["message"].contains("tool_calls"));
}

TEST_F(OpenAi, ChatMayUseTheWholeContext) {
  start();
  chat({});
  EXPECT_EQ(engine->last_params().max_tokens, 1024 - static_cast<std::int64_t>(engine->last_prompt().size()));
}

TEST_F(OpenAi, ChatRendersTheTemplateWithoutASecondBos) {
  start();
  const Json parts = {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}};
  chat({{"messages", {{{"role", "system"}, {"content", nullptr}}, {{"role", "user"}, {"content", parts}}}}});
  EXPECT_EQ(engine->tokenizer().decode(engine->last_prompt(), false), "system: \nuser: a\nb\nassistant:");
}

TEST_F(OpenAi, SpecialTokensInMessagesAreParsedAsInVllm) {
  start();
  chat({{"messages", {{{"role", "user"}, {"content", "<|im_end|>"}}}}});
  EXPECT_THAT(engine->last_prompt(), testing::Contains(259));
}

TEST_F(OpenAi, ContinuesTheFinalMessage) {
  start();
  const Json messages = {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "Hello "}}};
  const Json body = {{"messages", messages},
                     {"add_generation_prompt", false},
                     {"continue_final_message", true},
                     {"echo", true},
                     {"max_tokens", 4}};
  EXPECT_EQ(chat(body).json()["choices"][0]["message"]["content"], "Hello echo");
  EXPECT_EQ(engine->tokenizer().decode(engine->last_prompt(), false), "user: hi\nassistant: Hello");
  EXPECT_THAT(error_of(chat({{"continue_final_message", true}})), HasSubstr("add_generation_prompt"));
}

TEST_F(OpenAi, ToolsAreRenderedAndAnsweredAsText) {
  start();
  const Json tools = Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": null}}])");
  EXPECT_EQ(chat({{"tools", tools}, {"tool_choice", "auto"}}).status, 200);
  EXPECT_THAT(engine->tokenizer().decode(engine->last_prompt(), false), StartsWith("tools [{"));
  EXPECT_THAT(error_of(chat({{"tools", Json::array()}})), HasSubstr("tools"));
  EXPECT_THAT(error_of(chat({{"tool_choice", "auto"}})), HasSubstr("tools must be set"));
  EXPECT_THAT(error_of(chat({{"tools", tools}, {"tool_choice", "required"}})), HasSubstr("not supported"));
  const Json unknown = Json::parse(R"({"type": "function", "function": {"name": "g"}})");
  EXPECT_THAT(error_of(chat({{"tools", tools}, {"tool_choice", unknown}})), HasSubstr("names no function"));
}

TEST_F(OpenAi, ToolArgumentsReachTheTemplateAsObjects) {
  start();
  const Json call = Json::parse(R"({"id": "1", "function": {"name": "f", "arguments": "{\"a\": 1"}})");
  const Json messages = {{{"role", "assistant"}, {"content", nullptr}, {"tool_calls", Json::array({call})}}};
  EXPECT_THAT(error_of(chat({{"messages", messages}})), HasSubstr("messages[0].tool_calls"));
}

TEST_F(OpenAi, ATemplatesOwnErrorIsThe400) {
  start();
  EXPECT_THAT(error_of(chat({{"messages", {{{"role", "invalid"}, {"content", "x"}}}}})), HasSubstr("no such role"));
}

TEST_F(OpenAi, ChatLogprobsListExactlyWhatIsAskedFor) {
  start();
  const Json content =
      chat({{"logprobs", true}, {"top_logprobs", 3}, {"max_tokens", 2}}).json()["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2);
  EXPECT_EQ(content[0]["token"], "e");
  EXPECT_EQ(content[0]["bytes"], Json({101}));
  EXPECT_EQ(content[0]["logprob"], -0.625);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 3);
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], "f");
  EXPECT_EQ(
      chat({{"logprobs", true}, {"max_tokens", 1}}).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
      Json::array());
}

}  // namespace
}  // namespace nibble::server
