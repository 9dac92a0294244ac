// The API's contract: defaults, checks, error texts, the shapes of answers and streams.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server_fixture.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class OpenAi : public ServerTest {
 protected:
  Reply complete(const Json& body) const { return post("/v1/completions", body); }
  Reply chat(Json body) const {
    if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "hi"}}};
    return post("/v1/chat/completions", body);
  }
  std::string error_of(const Reply& reply) const {
    EXPECT_EQ(reply.status, 400) << reply.body;
    return reply.json()["error"]["message"];
  }
};

// ---- completions ----

TEST_F(OpenAi, CompletionHasOpenAisShape) {
  start();
  const Json answer = complete({{"model", "fake"}, {"prompt", "hi"}, {"max_tokens", 4}}).json();
  EXPECT_THAT(answer["id"].get<std::string>(), StartsWith("cmpl-"));
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "fake");
  EXPECT_GT(answer["created"], 1'700'000'000);
  EXPECT_THAT(answer["system_fingerprint"].get<std::string>(), testing::MatchesRegex("nibble-1.2.3-[0-9a-f]{8}"));
  EXPECT_EQ(answer["choices"], Json::parse(R"([{"index": 0, "text": "echo", "logprobs": null,
                                               "finish_reason": "length", "stop_reason": null}])"));
  EXPECT_EQ(answer["usage"], Json::parse(R"({"prompt_tokens": 3, "total_tokens": 7, "completion_tokens": 4})"));
}

TEST_F(OpenAi, CompletionDefaultsAreTheApis) {
  start();
  complete({{"prompt", "hi"}});
  const engine::SamplingParams params = engine->last_params();
  EXPECT_EQ(params.max_tokens, 16);
  EXPECT_EQ(params.temperature, 1);
  EXPECT_EQ(params.top_p, 1);
  EXPECT_EQ(params.top_k, 0);
  EXPECT_EQ(params.min_p, 0);
  EXPECT_EQ(params.repetition_penalty, 1);
  EXPECT_FALSE(params.seed);
  EXPECT_EQ(params.num_logprobs, -1);
  EXPECT_EQ(engine->last_prompt(), (std::vector<std::int32_t>{FakeTokenizer::kBos, 'h', 'i'}));
}

TEST_F(OpenAi, GenerationConfigGivesDefaultsThatRequestsOverride) {
  api.generation_config = {
      {"temperature", 0.6}, {"top_p", 0.9}, {"top_k", 20}, {"repetition_penalty", 1.1}, {"max_new_tokens", 10}};
  start();
  complete({{"prompt", "hi"}, {"top_k", -1}});
  const engine::SamplingParams params = engine->last_params();
  EXPECT_FLOAT_EQ(params.temperature, 0.6f);
  EXPECT_FLOAT_EQ(params.top_p, 0.9f);
  EXPECT_EQ(params.top_k, 0);
  EXPECT_FLOAT_EQ(params.repetition_penalty, 1.1f);
  EXPECT_EQ(params.max_tokens, 10);
  complete({{"prompt", "hi"}, {"max_tokens", 500}});
  EXPECT_EQ(engine->last_params().max_tokens, 10) << "max_new_tokens is a cap";
}

TEST_F(OpenAi, EveryParameterReachesTheEngine) {
  start();
  EXPECT_EQ(complete({{"prompt", "hi"},
                      {"temperature", 0.5},
                      {"top_p", 0.25},
                      {"top_k", 7},
                      {"min_p", 0.125},
                      {"presence_penalty", 0.5},
                      {"seed", -1},
                      {"frequency_penalty", -0.5},
                      {"repetition_penalty", 1.5},
                      {"min_tokens", 2},
                      {"ignore_eos", true},
                      {"skip_special_tokens", false},
                      {"stop", "xyz"},
                      {"stop_token_ids", {1, 2}},
                      {"include_stop_str_in_output", true},
                      {"logit_bias", {{"5", 200}, {"6", -1}}},
                      {"max_tokens", 3}})
                .status,
            200);
  const engine::SamplingParams params = engine->last_params();
  EXPECT_EQ(params.temperature, 0.5f);
  EXPECT_EQ(params.top_p, 0.25f);
  EXPECT_EQ(params.top_k, 7);
  EXPECT_EQ(params.min_p, 0.125f);
  EXPECT_EQ(params.presence_penalty, 0.5f);
  EXPECT_EQ(params.frequency_penalty, -0.5f);
  EXPECT_EQ(params.repetition_penalty, 1.5f);
  EXPECT_EQ(params.seed, ~std::uint64_t{0});
  EXPECT_EQ(params.min_tokens, 2);
  EXPECT_TRUE(params.ignore_eos);
  EXPECT_FALSE(params.skip_special_tokens);
  EXPECT_EQ(params.stop, std::vector<std::string>{"xyz"});
  EXPECT_EQ(params.stop_token_ids, (std::vector<std::int32_t>{1, 2}));
  EXPECT_TRUE(params.include_stop_str_in_output);
  EXPECT_EQ(params.logit_bias, (std::vector<std::pair<std::int32_t, float>>{{5, 100.f}, {6, -1.f}}));
}

TEST_F(OpenAi, TinyTemperaturesAreGreedyAndSmallOnesRaised) {
  start();
  complete({{"prompt", "hi"}, {"temperature", 1e-30}});
  EXPECT_EQ(engine->last_params().temperature, 0);
  complete({{"prompt", "hi"}, {"temperature", 1e-3}});
  EXPECT_EQ(engine->last_params().temperature, 0.01f);
  EXPECT_EQ(complete({{"prompt", "hi"}, {"temperature", 1e30}}).status, 200);
}

TEST_F(OpenAi, UnknownFieldsAreIgnored) {
  start();
  EXPECT_EQ(complete({{"prompt", "hi"}, {"user", "me"}, {"best_of", 3}, {"no_such_field", {{"a", 1}}}}).status, 200);
}

TEST_F(OpenAi, EmptyModelMeansTheServedOne) {
  start();
  for (const Json& model : {Json(nullptr), Json(""), Json("fake"), Json("alias")}) {
    const Reply reply = complete({{"prompt", "hi"}, {"model", model}});
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.json()["model"], "fake");
  }
}

TEST_F(OpenAi, UnknownModelIs404) {
  start();
  for (const std::string& model : {std::string("../../etc/passwd"), std::string("gpt-4")}) {
    const Reply reply = complete({{"prompt", "hi"}, {"model", model}});
    EXPECT_EQ(reply.status, 404);
    EXPECT_EQ(reply.json()["error"]["message"], "The model `" + model + "` does not exist.");
    EXPECT_EQ(reply.json()["error"]["type"], "NotFoundError");
    EXPECT_EQ(reply.json()["error"]["param"], "model");
    EXPECT_EQ(reply.json()["error"]["code"], 404);
  }
  EXPECT_EQ(complete({{"prompt", "hi"}, {"model", std::string("a\0\n", 3)}}).json()["error"]["message"],
            "The model `a\\x00\\x0a` does not exist.");
  const Reply reply = complete({{"prompt", "hi"}, {"model", std::string(1'000'000, 'm')}});
  EXPECT_EQ(reply.status, 404);
  EXPECT_LT(reply.body.size(), 1'000);
}

TEST_F(OpenAi, TakesEveryFormOfPrompt) {
  start();
  const Json tokens = {104, 105};
  EXPECT_EQ(complete({{"prompt", tokens}}).json()["usage"]["prompt_tokens"], 2) << "no BOS before token ids";
  const Json answer =
      complete({{"prompt", Json::array({"ab", tokens})}, {"n", 2}, {"max_tokens", 7}, {"add_special_tokens", false}})
          .json();
  ASSERT_EQ(answer["choices"].size(), 4);
  const std::vector<std::string> texts = {"echo:ab", "echo:ab", "echo:hi", "echo:hi"};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(answer["choices"][i]["index"], i);
    EXPECT_EQ(answer["choices"][i]["text"], texts[i]);
  }
  EXPECT_EQ(answer["usage"], Json::parse(R"({"prompt_tokens": 4, "total_tokens": 32, "completion_tokens": 28})"));
}

TEST_F(OpenAi, SeededChoicesDiffer) {
  start();
  complete({{"prompt", "hi"}, {"n", 3}, {"seed", 40}});
  EXPECT_EQ(engine->last_params().seed, 42);
}

TEST_F(OpenAi, TruncatesPromptsFromTheSideAskedFor) {
  start();
  complete({{"prompt", "abcdef"}, {"truncate_prompt_tokens", 2}});
  EXPECT_EQ(engine->last_prompt(), (std::vector<std::int32_t>{'e', 'f'}));
  complete({{"prompt", {1, 2, 3}}, {"truncate_prompt_tokens", 2}, {"truncation_side", "right"}});
  EXPECT_EQ(engine->last_prompt(), (std::vector<std::int32_t>{1, 2}));
}

TEST_F(OpenAi, EchoPutsThePromptInFront) {
  start();
  EXPECT_EQ(complete({{"prompt", "hi"}, {"echo", true}, {"max_tokens", 4}}).json()["choices"][0]["text"], "hiecho");
  EXPECT_EQ(complete({{"prompt", {104, 105}}, {"echo", true}, {"max_tokens", 4}}).json()["choices"][0]["text"],
            "hiecho");
}

TEST_F(OpenAi, EchoWithoutTokensOnlyScores) {
  start();
  const Json answer =
      complete({{"prompt", {104, 105, 106}}, {"echo", true}, {"max_tokens", 0}, {"logprobs", 1}}).json();
  EXPECT_EQ(answer["choices"][0]["text"], "hij");
  EXPECT_EQ(answer["choices"][0]["logprobs"]["tokens"], Json({"h", "i", "j"}));
  EXPECT_EQ(answer["usage"]["completion_tokens"], 0);
}

TEST_F(OpenAi, LmEvalsRequestGetsLogprobsOfThePrompt) {
  start();
  const Json answer = complete({{"model", "fake"},
                                {"prompt", {{104, 105}, {106, 107}}},
                                {"temperature", 0},
                                {"max_tokens", 1},
                                {"logprobs", 1},
                                {"echo", true},
                                {"seed", 1234}})
                          .json();
  const Json& logprobs = answer["choices"][1]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"j", "k", "e"}));
  EXPECT_EQ(logprobs["token_logprobs"], Json({nullptr, -0.375, -0.625}));
  EXPECT_EQ(logprobs["top_logprobs"], Json::parse(R"([null, {"k": -0.375}, {"e": -0.625}])"));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 1, 2}));
}

TEST_F(OpenAi, LogprobsOfZeroStillNameTheToken) {
  start();
  const Json logprobs =
      complete({{"prompt", "hi"}, {"max_tokens", 1}, {"logprobs", 0}}).json()["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["top_logprobs"], Json::parse(R"([{"e": -0.625}])"));
}

TEST_F(OpenAi, TokensMayBeNamedByTheirIds) {
  start();
  const Json logprobs =
      complete({{"prompt", "hi"}, {"max_tokens", 1}, {"logprobs", 2}, {"return_tokens_as_token_ids", true}})
          .json()["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"token_id:101"}));
  EXPECT_EQ(logprobs["top_logprobs"][0].size(), 2);
  EXPECT_TRUE(logprobs["top_logprobs"][0].contains("token_id:102"));
}

TEST_F(OpenAi, StopReasonSaysWhatStopped) {
  start();
  const Json by_string = complete({{"prompt", "hi"}, {"stop", Json::array({"ho:", "zz"})}}).json()["choices"][0];
  EXPECT_EQ(by_string["text"], "ec");
  EXPECT_EQ(by_string["finish_reason"], "stop");
  EXPECT_EQ(by_string["stop_reason"], "ho:");
  const Json by_token = complete({{"prompt", "hi"}, {"stop_token_ids", {'h'}}}).json()["choices"][0];
  EXPECT_EQ(by_token["finish_reason"], "stop");
  EXPECT_EQ(by_token["stop_reason"], 'h');
  const Json by_eos = complete({{"prompt", "hi"}}).json()["choices"][0];
  EXPECT_EQ(by_eos["finish_reason"], "stop");
  EXPECT_EQ(by_eos["stop_reason"], nullptr);
}

// ---- streams ----

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

// ---- chat ----

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

// ---- checks ----

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

// ---- the other endpoints ----

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
  complete({{"prompt", "hi"}, {"max_tokens", 4}});
  get("/nothing");
  const std::string metrics = get("/metrics").body;
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

// ---- access ----

TEST_F(OpenAi, WithoutItsKeyNothingButProbesIsServed) {
  access.api_keys = {"first", "second"};
  start();
  for (const char* path : {"/v1/models", "/v1/models/", "//v1/models", "/v1/nothing", "/health/", "/tokenize"}) {
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

// ---- shutting down ----

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
