#include "quantize/resources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>

#include "core/file.h"
#include "core/temporary_folder.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kTerabyte = 1'000'000'000'000;

class Preflight : public ::testing::Test {
 protected:
  Preflight() {
    options_.output = folder_ / "output";
    resources_.output_disk = static_cast<std::int64_t>(std::filesystem::space(folder_.path()).available) + kTerabyte;
  }
  void run() { preflight(resources_, options_, /*free_memory=*/1 << 30, pool_); }

  TemporaryFolder folder_;
  ThreadPool pool_{1};
  PipelineOptions options_;
  Resources resources_;
};

TEST_F(Preflight, RefusesADiskThatIsTooSmallNamingFolderAndNumbers) {
  try {
    run();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unavailable);
    EXPECT_THAT(error.what(), ::testing::MatchesRegex(
                                  ".*/output: the run needs about [0-9.]+ GB of disk \\([0-9.]+ GB for the checkpoint, "
                                  "the rest for scratch files\\) and [0-9.]+ .?B are free; make room or choose another "
                                  "--output"));
  }
  EXPECT_FALSE(std::filesystem::exists(options_.output));
}

TEST_F(Preflight, ScratchFilesCountAsWell) {
  resources_.output_disk = 0;
  resources_.hidden_memory = resources_.scratch_disk = 2 << 20;
  EXPECT_NO_THROW(run());
  resources_.hidden_memory = 1000 * kTerabyte;  // beyond the memory: a scratch file
  EXPECT_THROW(run(), Error);
}

TEST_F(Preflight, WhatAStoppedRunHasWrittenNeedsNoRoomAgain) {
  std::filesystem::create_directories(options_.output / ".nibble");
  write_text_file(options_.output / ".nibble" / "shard-00001", "");
  EXPECT_THROW(run(), Error);
  std::filesystem::resize_file(options_.output / ".nibble" / "shard-00001", 2 * kTerabyte);  // a hole
  EXPECT_NO_THROW(run());
}

}  // namespace
}  // namespace nibble::quantize
