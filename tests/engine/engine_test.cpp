#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <random>
#include <string_view>
#include <thread>

#include "support/devices.h"
#include "support/tiny_model.h"

namespace nibble::engine {
namespace {

using testing_support::TemporaryFolder;

/// Collects one request's outputs until it ends.
class Client {
 public:
  OutputSink sink() {
    return [this](RequestOutput output) {
      const std::scoped_lock lock(mutex_);
      text_ += output.text;
      tokens_.insert(tokens_.end(), output.tokens.begin(), output.tokens.end());
      std::ranges::move(output.logprobs, std::back_inserter(logprobs_));
      std::ranges::move(output.prompt_logprobs, std::back_inserter(prompt_logprobs_));
      last_ = std::move(output);
      changed_.notify_all();
    };
  }
  RequestOutput wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return last_.finish_reason != FinishReason::None; });
    return last_;
  }
  void wait_for_tokens(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return tokens_.size() >= count || last_.finish_reason != FinishReason::None; });
  }
  std::vector<std::int32_t> tokens() {
    const std::scoped_lock lock(mutex_);
    return tokens_;
  }
  std::vector<TokenLogprob> logprobs() { return logprobs_; }
  std::vector<std::optional<TokenLogprob>> prompt_logprobs() { return prompt_logprobs_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  std::vector<std::int32_t> tokens_;
  std::vector<TokenLogprob> logprobs_;
  std::vector<std::optional<TokenLogprob>> prompt_logprobs_;
  RequestOutput last_;
};

/// The same behaviour is expected of every device.
class EngineTest : public testing::TestWithParam<std::string> {
 protected:
  EngineTest() { testing_support::write_tiny_config(folder_.path()); }

  std::unique_ptr<Engine> load(EngineOptions options = {}) {
    options.device = GetParam();
    options.load_format = "dummy";
    options.num_threads = 2;
    if (options.kv_cache_memory_bytes == 0) options.kv_cache_memory_bytes = 8'000'000;
    return Engine::load(folder_.path(), options);
  }

  static Request greedy(std::string id, std::vector<std::int32_t> prompt, std::int64_t max_tokens, Client& client) {
    Request request;
    request.id = std::move(id);
    request.prompt = std::move(prompt);
    request.params.temperature = 0;
    request.params.max_tokens = max_tokens;
    request.on_output = client.sink();
    return request;
  }

  static std::vector<std::int32_t> prompt(int seed, int length) {
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < length; ++i) tokens.push_back((seed * 37 + i * 11 + i * i * seed) % 256);
    return tokens;
  }

  static std::vector<std::int32_t> generate(Engine& engine, const std::vector<std::int32_t>& prompt, int count) {
    Client client;
    engine.submit(greedy("alone", prompt, count, client));
    client.wait();
    return client.tokens();
  }

  TemporaryFolder folder_;
};

TEST_P(EngineTest, GeneratesTheTokensThatItsOwnScoresPrefer) {
  const auto engine = load();
  const auto start = prompt(3, 20);
  auto tokens = start;
  const auto generated = generate(*engine, start, 12);
  ASSERT_EQ(generated.size(), 12u);
  tokens.insert(tokens.end(), generated.begin(), generated.end());
  std::vector<std::int32_t> best;
  engine->score(tokens, [&](const LogitTile& tile) {
    for (std::int64_t r = 0; r < tile.logits.rows; ++r) {
      const auto row = tile.logits.row_span(r);
      best.push_back(static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin()));
    }
  });
  ASSERT_EQ(best.size(), tokens.size());
  for (std::size_t i = start.size(); i < tokens.size(); ++i) EXPECT_EQ(best[i - 1], tokens[i]) << "position " << i;
}

TEST_P(EngineTest, ABatchGivesEachRequestWhatItGetsAlone) {
  const auto engine = load({.max_num_batched_tokens = 64});
  constexpr int kRequests = 12;
  std::vector<std::vector<std::int32_t>> alone;
  for (int i = 0; i < kRequests; ++i) alone.push_back(generate(*engine, prompt(i, 5 + 9 * i), 16));
  const auto fresh = load({.max_num_batched_tokens = 64, .enable_prefix_caching = false});
  std::vector<Client> clients(kRequests);
  for (int i = 0; i < kRequests; ++i) {
    fresh->submit(greedy(std::to_string(i), prompt(i, 5 + 9 * i), 16, clients[static_cast<std::size_t>(i)]));
  }
  for (std::size_t i = 0; i < kRequests; ++i) {
    EXPECT_EQ(clients[i].wait().finish_reason, FinishReason::Length);
    EXPECT_EQ(clients[i].tokens(), alone[i]) << "request " << i;
  }
}

TEST_P(EngineTest, PreemptsAndRecomputesWithoutChangingAnything) {
  const auto roomy = load();
  std::vector<std::vector<std::int32_t>> alone;
  for (int i = 0; i < 6; ++i) alone.push_back(generate(*roomy, prompt(i, 30), 60));
  // 256 positions are 16 blocks; six sequences of 90 tokens want 36.
  const auto tight = load({.num_gpu_blocks_override = 16});
  std::vector<Client> clients(6);
  for (int i = 0; i < 6; ++i) {
    tight->submit(greedy(std::to_string(i), prompt(i, 30), 60, clients[static_cast<std::size_t>(i)]));
  }
  for (std::size_t i = 0; i < clients.size(); ++i) {
    clients[i].wait();
    EXPECT_EQ(clients[i].tokens(), alone[i]) << "request " << i;
  }
  EXPECT_GT(tight->stats().num_preemptions, 0);
  tight->drain(10);
  EXPECT_EQ(tight->stats().num_free_kv_blocks, 16);
}

TEST_P(EngineTest, ACachedPrefixGivesTheSameTokens) {
  const auto engine = load();
  const auto start = prompt(5, 100);
  const auto first = generate(*engine, start, 10);
  Client again;
  engine->submit(greedy("again", start, 10, again));
  const RequestOutput last = again.wait();
  EXPECT_EQ(again.tokens(), first);
  EXPECT_EQ(last.num_cached_tokens, 96);
}

TEST_P(EngineTest, CancelFreesTheBlocksAndLeavesOthersAlone) {
  const auto engine = load({.max_model_len = 256});
  const auto expected = generate(*engine, prompt(2, 10), 100);
  Client cancelled;
  Client kept;
  engine->submit(greedy("cancelled", prompt(1, 10), 200, cancelled));
  engine->submit(greedy("kept", prompt(2, 10), 100, kept));
  cancelled.wait_for_tokens(3);
  engine->cancel("cancelled");
  EXPECT_EQ(cancelled.wait().finish_reason, FinishReason::Abort);
  kept.wait();
  EXPECT_EQ(kept.tokens(), expected);
  engine->drain(10);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.num_free_kv_blocks, stats.num_kv_blocks);
  EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
}

TEST_P(EngineTest, DrainAbortsWhatTakesTooLongAndRefusesMore) {
  const auto engine = load();
  Client client;
  engine->submit(greedy("long", prompt(1, 10), 240, client));
  engine->drain(0);
  EXPECT_NE(client.wait().finish_reason, FinishReason::None);
  Client late;
  EXPECT_THROW(engine->submit(greedy("late", prompt(1, 10), 4, late)), Error);
}

TEST_P(EngineTest, SeededSamplingDoesNotDependOnTheBatch) {
  const auto engine = load();
  const auto sampled = [&](int others) {
    std::vector<Client> clients(static_cast<std::size_t>(others) + 1);
    for (int i = 0; i <= others; ++i) {
      Request request = greedy(std::to_string(i), prompt(i, 10 + i), 20, clients[static_cast<std::size_t>(i)]);
      request.params.temperature = 1;
      request.params.top_p = 0.9f;
      request.params.seed = 1234;
      engine->submit(std::move(request));
    }
    for (auto& client : clients) client.wait();
    return clients.front().tokens();
  };
  EXPECT_EQ(sampled(0), sampled(7));
}

/// Requests of every kind, submitted while others run; their tokens and how they ended.
std::vector<std::pair<std::vector<std::int32_t>, FinishReason>> run_mixture(Engine& engine, unsigned seed) {
  std::mt19937 random(seed);
  constexpr std::size_t kRequests = 40;
  std::vector<Client> clients(kRequests);
  for (std::size_t i = 0; i < kRequests; ++i) {
    Request request;
    request.id = std::to_string(i);
    for (std::uint64_t length = 1 + random() % 60; length > 0; --length) {
      request.prompt.push_back(static_cast<std::int32_t>(random() % 256));
    }
    SamplingParams& params = request.params;
    params.temperature = random() % 3 == 0 ? 0.0f : 1.0f;
    if (random() % 3 == 0) params.top_p = 0.9f;
    if (random() % 4 == 0) params.repetition_penalty = 1.3f;
    if (random() % 4 == 0) params.num_logprobs = 2;
    if (random() % 5 == 0) params.num_prompt_logprobs = 1;
    if (random() % 2 == 0) {  // of 256 tokens some stop, after a few steps or many
      for (std::uint64_t n = random() % 20; n > 0; --n) {
        params.stop_token_ids.push_back(static_cast<std::int32_t>(random() % 256));
      }
    }
    if (random() % 3 == 0) params.min_tokens = static_cast<std::int64_t>(random() % 10);
    if (random() % 4 == 0) params.stop = {"e", "th"};
    params.seed = random();
    params.max_tokens = 1 + static_cast<std::int64_t>(random() % 50);
    request.on_output = clients[i].sink();
    engine.submit(std::move(request));
    if (random() % 4 == 0) clients[i].wait_for_tokens(1 + random() % 8);
  }
  std::vector<std::pair<std::vector<std::int32_t>, FinishReason>> results;
  for (Client& client : clients) {
    const FinishReason reason = client.wait().finish_reason;
    results.emplace_back(client.tokens(), reason);
  }
  return results;
}

TEST_P(EngineTest, StepsLaunchedAheadChangeNoToken) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    // 40 blocks: sequences are preempted. Few at once: others wait for one to end.
    for (const EngineOptions& base : {EngineOptions{}, EngineOptions{.num_gpu_blocks_override = 40},
                                      EngineOptions{.max_num_seqs = 3, .max_num_batched_tokens = 16}}) {
      EngineOptions options = base;
      // Batches of another size run other kernels there, which round differently.
      if (std::string_view(GetParam()) == "cuda") options.max_num_seqs = 1;
      options.async_scheduling = false;
      const auto expected = run_mixture(*load(options), seed);
      options.async_scheduling = true;
      const auto engine = load(options);
      EXPECT_EQ(run_mixture(*engine, seed), expected);
      engine->drain(10);
      const EngineStats stats = engine->stats();
      EXPECT_EQ(stats.num_free_kv_blocks, stats.num_kv_blocks);
    }
  }
}

TEST_P(EngineTest, CancelsWithStepsInFlightLeaveTheOthersTokens) {
  std::vector<std::vector<std::int32_t>> alone;
  const auto roomy = load({.enable_prefix_caching = false});
  for (int i = 0; i < 8; ++i) alone.push_back(generate(*roomy, prompt(i, 20 + i), 60));
  const auto engine = load({.max_num_seqs = 6, .num_gpu_blocks_override = 60});
  std::mt19937 random(9);
  for (int round = 0; round < 6; ++round) {
    std::vector<Client> clients(8);
    for (int i = 0; i < 8; ++i) {
      const auto index = static_cast<std::size_t>(i);
      engine->submit(greedy(std::to_string(i), prompt(i, 20 + i), i % 2 == 0 ? 60 : 200, clients[index]));
    }
    for (std::size_t i = 1; i < clients.size(); i += 2) {
      clients[i].wait_for_tokens(random() % 30);
      engine->cancel(std::to_string(i));
      EXPECT_NE(clients[i].wait().finish_reason, FinishReason::Error);
    }
    for (std::size_t i = 0; i < clients.size(); i += 2) {
      EXPECT_EQ(clients[i].wait().finish_reason, FinishReason::Length);
      // On a GPU batches of another size run other kernels, which round differently.
      if (std::string_view(GetParam()) == "cuda") continue;
      EXPECT_EQ(clients[i].tokens(), alone[i]) << "request " << i;
    }
  }
  engine->drain(10);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.num_free_kv_blocks, stats.num_kv_blocks);
}

TEST_P(EngineTest, EndsWithStepsInFlight) {
  Client client;
  {
    const auto engine = load();
    engine->submit(greedy("long", prompt(1, 10), 200, client));
    client.wait_for_tokens(5);
  }
  EXPECT_EQ(client.wait().finish_reason, FinishReason::Abort);
}

TEST_P(EngineTest, PromptLogprobsAgreeWithScore) {
  const auto engine = load({.max_num_batched_tokens = 32});
  const auto start = prompt(4, 80);
  Client client;
  Request request = greedy("prompt", start, 1, client);
  request.params.num_prompt_logprobs = 2;
  request.params.num_logprobs = 2;
  engine->submit(std::move(request));
  client.wait();
  const auto logprobs = client.prompt_logprobs();
  ASSERT_EQ(logprobs.size(), start.size());
  EXPECT_FALSE(logprobs[0].has_value());
  std::size_t position = 1;
  engine->score(start, [&](const LogitTile& tile) {
    for (std::int64_t r = 0; r < tile.logits.rows && position < start.size(); ++r, ++position) {
      const auto row = tile.logits.row_span(r);
      double sum = 0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      const double expected = row[static_cast<std::size_t>(start[position])] - std::log(sum);
      EXPECT_NEAR(logprobs[position]->logprob, expected, 1e-4);
      EXPECT_EQ(logprobs[position]->top.size(), 2u);
    }
  });
  EXPECT_EQ(client.logprobs().size(), 1u);
}

TEST_P(EngineTest, RefusesWhatItCannotRun) {
  const auto engine = load();
  Client client;
  const auto refused = [&](Request request) -> std::string {
    try {
      engine->submit(std::move(request));
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refused(greedy("a", {}, 1, client)), testing::HasSubstr("empty"));
  EXPECT_THAT(refused(greedy("b", {256}, 1, client)), testing::HasSubstr("out of vocabulary"));
  EXPECT_THAT(refused(greedy("c", {-1}, 1, client)), testing::HasSubstr("out of vocabulary"));
  EXPECT_THAT(refused(greedy("d", prompt(1, 256), 1, client)), testing::HasSubstr("maximum context length is 256"));
  EXPECT_THAT(refused(greedy("e", {1}, 0, client)), testing::HasSubstr("max_tokens"));
}

TEST_P(EngineTest, RefusesOptionsThatContradictTheModel) {
  const auto refused = [&](const EngineOptions& options) -> std::string {
    try {
      load(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refused({.quantization = "awq"}), testing::HasSubstr("nibble quantize --method awq"));
  EXPECT_THAT(refused({.dtype = "int3"}), testing::HasSubstr("--dtype int3"));
  EXPECT_THAT(refused({.max_model_len = 10'000}), testing::HasSubstr("--max-model-len 10000"));
  EXPECT_THAT(refused({.max_model_len = 256, .kv_cache_memory_bytes = 20'000}), testing::HasSubstr("KV cache holds"));
}

INSTANTIATE_TEST_SUITE_P(Devices, EngineTest, testing::ValuesIn(testing_support::test_devices()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace nibble::engine
