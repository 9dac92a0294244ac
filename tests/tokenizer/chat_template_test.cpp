#include "tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble::tokenizer {
namespace {

using ::testing::HasSubstr;

std::string render(std::string_view source, const Json& messages, const ChatTemplate::Options& options = {}) {
  return ChatTemplate::compile(source, "t.jinja")->render(messages, options);
}

template <class Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

const Json kTurns = Json::parse(R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Hello."}, {"role": "user", "content": [{"type": "text", "text": "Who are"},
  {"type": "image_url"}, {"type": "text", "text": " you?"}]}])");

TEST(ChatTemplate, SeesMessagesToolsAndTokens) {
  ChatTemplate::Options options;
  options.tools = Json::parse(R"([{"type": "function"}])");
  options.bos_token = "<s>";
  options.extra_kwargs = {{"enable_thinking", false}};
  EXPECT_EQ(render("{{ bos_token }}{{ eos_token is defined }} {{ tools|tojson }} {{ documents is none }} "
                   "{{ messages|length }}{{ add_generation_prompt }} {{ enable_thinking }}",
                   kTurns, options),
            "<s>False [{\"type\": \"function\"}] True 4True False");
}

TEST(ChatTemplate, KwargsCannotOverrideMessages) {
  for (const char* name : {"messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}) {
    ChatTemplate::Options options;
    options.extra_kwargs = {{name, 1}};
    EXPECT_THAT(message_of([&] { render("x", Json::array(), options); }), HasSubstr(name));
  }
  ChatTemplate::Options options;
  options.extra_kwargs = Json::array();
  EXPECT_THAT(message_of([&] { render("x", Json::array(), options); }), HasSubstr("expected an object"));
}

TEST(ChatTemplate, RefusesMessagesThatAreNone) {
  EXPECT_THAT(message_of([] { render("x", Json()); }), HasSubstr("expected a list"));
  EXPECT_THAT(message_of([] { render("x", Json::array({"text"})); }), HasSubstr("must be an object"));
}

TEST(ChatTemplate, OffersReasoningUnderBothNames) {
  const Json messages = Json::parse(R"([{"role": "assistant", "content": "", "reasoning": "because"}])");
  EXPECT_EQ(render("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}", messages), "because because");
}

ChatTemplateChoice choose(const Json& tokenizer_config, std::string_view model_type, std::string_view model_name,
                          bool has_im_start = false) {
  return choose_chat_template("", "", tokenizer_config, model_type, model_name, has_im_start);
}

TEST(ChooseChatTemplate, PrefersFlagThenFileThenConfig) {
  const Json config = {{"chat_template", "config"}};
  const auto flag = choose_chat_template("flag", "file", config, "llama", "m", false);
  EXPECT_EQ(flag.origin, "--chat-template");
  EXPECT_EQ(flag.chat_template->render(kTurns, {}), "flag");
  EXPECT_EQ(choose_chat_template("", "file", config, "llama", "m", false).chat_template->render(kTurns, {}), "file");
  const auto configured = choose(config, "llama", "m");
  EXPECT_EQ(configured.chat_template->render(kTurns, {}), "config");
  EXPECT_FALSE(configured.is_fallback);
}

TEST(ChooseChatTemplate, TakesTheDefaultOfNamedTemplates) {
  const Json config = Json::parse(R"({"chat_template": [{"name": "tool_use", "template": "tools"},
                                                        {"name": "default", "template": "plain"}]})");
  EXPECT_EQ(choose(config, "llama", "m").chat_template->render(kTurns, {}), "plain");
  const Json only_tools = Json::parse(R"({"chat_template": [{"name": "tool_use", "template": "tools"}]})");
  EXPECT_TRUE(choose(only_tools, "llama", "m").is_fallback);
  EXPECT_THAT(message_of([] { choose({{"chat_template", 5}}, "llama", "m"); }), HasSubstr("tokenizer_config.json"));
}

TEST(ChooseChatTemplate, NamesTheFileOfABrokenTemplate) {
  EXPECT_EQ(message_of([] { choose({{"chat_template", "{% nope %}"}}, "llama", "m"); }),
            "tokenizer_config.json: line 1: Encountered unknown tag 'nope'.");
}

// The expected texts are those of the families' reference code for the same turns.
TEST(ChooseChatTemplate, Llama2WritesItsInstMarkers) {
  const auto choice = choose({}, "llama", "TheBloke/Llama-2-7B-Chat-AWQ");
  EXPECT_EQ(choice.origin, "Llama-2 family");
  EXPECT_TRUE(choice.is_fallback);
  ChatTemplate::Options options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  EXPECT_EQ(choice.chat_template->render(kTurns, options),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Who are you? [/INST]");
}

TEST(ChooseChatTemplate, MistralPutsTheSystemTextBeforeTheFirstUser) {
  const auto choice = choose({}, "mistral", "m");
  ChatTemplate::Options options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  EXPECT_EQ(choice.chat_template->render(kTurns, options),
            "<s> [INST] Be brief.\n\nHi [/INST] Hello.</s> [INST] Who are you? [/INST]");
}

TEST(ChooseChatTemplate, ChatMlWhereTheVocabularyKnowsIt) {
  EXPECT_EQ(choose({}, "mistral", "OpenHermes", true).chat_template->render(kTurns, {}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
            "<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChooseChatTemplate, PlainTurnsForEverythingElse) {
  const auto choice = choose({}, "llama", "some-base-model");
  EXPECT_EQ(choice.origin, "plain turns");
  EXPECT_EQ(choice.chat_template->render(kTurns, {}),
            "Be brief.\n\nUser: Hi\nAssistant: Hello.\nUser: Who are you?\nAssistant:");
}

TEST(ChooseChatTemplate, FamiliesRefuseTurnsTheyCannotWrite) {
  const Json twice = Json::parse(R"([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])");
  for (const char* model_type : {"llama", "mistral"}) {
    const auto choice = choose({}, model_type, "llama-2");
    EXPECT_THAT(message_of([&] { choice.chat_template->render(twice, {}); }), HasSubstr("must alternate"));
  }
}

}  // namespace
}  // namespace nibble::tokenizer
