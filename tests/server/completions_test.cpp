// POST /v1/completions: parameters, prompts, echo, log probabilities.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "openai_fixture.h"

namespace nibble::server {
namespace {

using testing::StartsWith;

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
  EXPECT_THAT(server->serving().unknown_fields.names(), testing::IsEmpty());
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
  EXPECT_EQ(chat({{"max_tokens", 1}, {"verbosity", "low"}, {"user", "me"}}).status, 200);
  EXPECT_THAT(server->serving().unknown_fields.names(),
              testing::ElementsAre("best_of", "no_such_field", "user", "verbosity"));
}

TEST_F(OpenAi, NamesOfUnknownFieldsTakeBoundedMemory) {
  start();
  Json body = {{"prompt", "hi"}, {std::string(10'000, 'k'), 1}};
  for (int i = 0; i < 2'000; ++i) body["field" + std::to_string(i)] = i;
  EXPECT_EQ(complete(body).status, 200);
  const auto names = server->serving().unknown_fields.names();
  EXPECT_EQ(names.size(), 256);
  for (const std::string& name : names) EXPECT_LT(name.size(), 100);
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

}  // namespace
}  // namespace nibble::server
