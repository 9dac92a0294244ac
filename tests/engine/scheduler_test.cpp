#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::engine {
namespace {

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() {
    testing_support::write_tiny_config(folder_.path());
    tokenizer_ =
        tokenizer::Tokenizer::from_json(*models::make_dummy_checkpoint(folder_.path(), 0)->side_file("tokenizer.json"));
  }

  std::unique_ptr<Sequence> sequence(const std::string& id, std::size_t length) {
    Request request;
    request.id = id;
    for (std::size_t i = 0; i < length; ++i) {
      request.prompt.push_back(static_cast<std::int32_t>((i * 7 + static_cast<std::size_t>(id[0])) % 256));
    }
    request.params.max_tokens = 100;
    request.on_output = [](const RequestOutput&) {};
    return std::make_unique<Sequence>(std::move(request), *tokenizer_, 0, std::vector<std::int32_t>{}, 256);
  }

  /// "id:first+count" of each part of the step, which is then committed with one sampled token where it samples.
  static std::vector<std::string> step(Scheduler& scheduler) {
    const auto scheduled = scheduler.schedule();
    std::vector<std::string> parts;
    for (const auto& part : scheduled) {
      parts.push_back(part.sequence->id() + ":" + std::to_string(part.first) + "+" + std::to_string(part.count));
    }
    scheduler.commit(scheduled);
    for (const auto& part : scheduled) {
      if (part.samples()) part.sequence->append({.token = 1});
    }
    scheduler.remove_finished();
    return parts;
  }

  testing_support::TemporaryFolder folder_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
};

TEST_F(SchedulerTest, CutsALongPromptIntoChunksBesideRunningDecodes) {
  BlockManager blocks(100, 4, true);
  Scheduler scheduler(blocks, {.max_num_seqs = 8, .max_num_batched_tokens = 10});
  scheduler.add(sequence("a", 3));
  scheduler.add(sequence("b", 25));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:0+3", "b:0+7"));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:3+1", "b:7+9"));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:4+1", "b:16+9"));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:5+1", "b:25+1"));
}

TEST_F(SchedulerTest, RunsAtMostMaxNumSeqs) {
  BlockManager blocks(100, 4, true);
  Scheduler scheduler(blocks, {.max_num_seqs = 2, .max_num_batched_tokens = 100});
  for (const char* id : {"a", "b", "c"}) scheduler.add(sequence(id, 3));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:0+3", "b:0+3"));
  scheduler.find("a")->finish(FinishReason::Abort);
  scheduler.remove_finished();
  EXPECT_THAT(step(scheduler), testing::ElementsAre("b:3+1", "c:0+3"));
}

TEST_F(SchedulerTest, PreemptsTheYoungestAndResumesItFirst) {
  BlockManager blocks(4, 4, false);
  Scheduler scheduler(blocks, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  scheduler.add(sequence("a", 8));
  scheduler.add(sequence("b", 8));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:0+8", "b:0+8"));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:8+1"));  // its third block is b's second
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.find("a")->finish(FinishReason::Abort);
  scheduler.remove_finished();
  EXPECT_THAT(step(scheduler), testing::ElementsAre("b:0+9"));  // prompt and the token it had sampled
}

TEST_F(SchedulerTest, ReturnsEveryBlockOfFinishedSequences) {
  BlockManager blocks(10, 4, true);
  Scheduler scheduler(blocks, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  scheduler.add(sequence("a", 9));
  scheduler.add(sequence("b", 9));
  step(scheduler);
  EXPECT_EQ(blocks.num_available(), 4);
  for (Sequence* each : scheduler.all()) each->finish(FinishReason::Abort);
  scheduler.remove_finished();
  EXPECT_EQ(blocks.num_available(), 10);
  EXPECT_TRUE(scheduler.is_idle());
}

TEST_F(SchedulerTest, ReusesACachedPromptButComputesItsLastToken) {
  BlockManager blocks(20, 4, true);
  Scheduler scheduler(blocks, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  scheduler.add(sequence("a", 8));
  step(scheduler);
  scheduler.find("a")->finish(FinishReason::Abort);
  scheduler.remove_finished();
  scheduler.add(sequence("a", 8));
  EXPECT_THAT(step(scheduler), testing::ElementsAre("a:4+4"));
}

}  // namespace
}  // namespace nibble::engine
