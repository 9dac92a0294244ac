#include "hub/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"

namespace nibble::hub {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

/// A cache as huggingface_hub lays it out, in a folder of its own; HF_HUB_CACHE points at it.
class HubTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    cache_ = fs::path(testing::TempDir()) / (std::string("nibble-hub-") + test->name());
    fs::remove_all(cache_);
    fs::create_directories(cache_);
    setenv("HF_HUB_CACHE", cache_.c_str(), 1);
  }
  void TearDown() override {
    fs::remove_all(cache_);
    for (const char* variable : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) {
      unsetenv(variable);
    }
  }

  void write(const fs::path& relative, const std::string& text) const {
    fs::create_directories((cache_ / relative).parent_path());
    std::ofstream(cache_ / relative) << text;
  }
  /// The files that huggingface_hub leaves after a download: blob, relative link in the snapshot, ref.
  void download(const std::string& repository, const std::string& revision, const std::string& commit) const {
    write(repository + "/blobs/abc", "{}");
    fs::create_directories(cache_ / repository / "snapshots" / commit);
    fs::create_symlink("../../blobs/abc", cache_ / repository / "snapshots" / commit / "config.json");
    write(repository + "/refs/" + revision, commit);
  }
  static std::string error_of(std::string_view name, ErrorCode code) {
    try {
      resolve_model(name);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    ADD_FAILURE() << name << " was resolved";
    return "";
  }

  fs::path cache_;
};

TEST_F(HubTest, FindsTheSnapshotOfMain) {
  download("models--org--name", "main", kCommit);
  const fs::path folder = resolve_model("org/name");
  EXPECT_EQ(folder, cache_ / "models--org--name" / "snapshots" / kCommit);
  EXPECT_TRUE(fs::exists(folder / "config.json"));
}

TEST_F(HubTest, FindsBranchesWithSlashesTagsAndCommits) {
  download("models--org--name", "refs/pr/1", kCommit);
  for (const std::string& revision : {std::string("refs/pr/1"), kCommit}) {
    EXPECT_EQ(resolve_model("org/name@" + revision).filename(), kCommit) << revision;
  }
  EXPECT_THAT(error_of("org/name@v2", ErrorCode::NotFound), HasSubstr("--revision v2"));
}

TEST_F(HubTest, PrefersAnExistingPathToTheCache) {
  download("models--org--name", "main", kCommit);
  write("org/name/config.json", "{}");
  const fs::path before = fs::current_path();
  fs::current_path(cache_);
  const fs::path resolved = resolve_model("org/name");
  fs::current_path(before);
  EXPECT_EQ(resolved, "org/name");
}

TEST_F(HubTest, SaysHowToGetAModelThatIsNotThere) {
  const std::string message = error_of("org/name", ErrorCode::NotFound);
  EXPECT_THAT(message, HasSubstr(cache_.string()));
  EXPECT_THAT(message, HasSubstr("huggingface-cli download org/name"));
}

TEST_F(HubTest, SaysSoWhenASnapshotIsMissing) {
  write("models--org--name/refs/main", kCommit);
  EXPECT_THAT(error_of("org/name", ErrorCode::NotFound), HasSubstr("nibble does not download"));
}

TEST_F(HubTest, RefusesARefThatEscapesTheCache) {
  write("models--org--name/refs/main", "../../../../etc");
  EXPECT_THAT(error_of("org/name", ErrorCode::Corrupt), HasSubstr("refs/main"));
}

TEST_F(HubTest, RefusesNamesThatAreNoHubNames) {
  for (const char* name :
       {"name", "/org/name", "org/", "org/name/more", "../name", "org/..", "org/.name", "org/name@", "org/name@../x",
        "org/name@/etc", "org/name@a//b", "org--x/name", "org/na me", "org/name\n", "org/na\\me", "-org/name"}) {
    EXPECT_FALSE(parse_hub_name(name)) << name;
    error_of(name, ErrorCode::NotFound);
  }
  EXPECT_FALSE(parse_hub_name("org/" + std::string(97, 'a')));
  error_of("", ErrorCode::InvalidArgument);
}

TEST_F(HubTest, KeepsControlCharactersAndMegabytesOutOfMessages) {
  const std::string message =
      error_of("a\r\nnibble: error: forged\x1b[31m" + std::string(1 << 20, 'x'), ErrorCode::NotFound);
  EXPECT_EQ(message.find_first_of("\r\n\x1b"), std::string::npos);
  EXPECT_LT(message.size(), 500U);
}

TEST_F(HubTest, TakesTheCacheFromTheVariablesInHuggingFacesOrder) {
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  setenv("HF_HOME", "/home-hf", 1);
  setenv("HUGGINGFACE_HUB_CACHE", "/old", 1);
  setenv("HF_HUB_CACHE", "/new", 1);
  EXPECT_EQ(cache_folder(), "/new");
  unsetenv("HF_HUB_CACHE");
  EXPECT_EQ(cache_folder(), "/old");
  unsetenv("HUGGINGFACE_HUB_CACHE");
  EXPECT_EQ(cache_folder(), "/home-hf/hub");
  unsetenv("HF_HOME");
  EXPECT_EQ(cache_folder(), "/xdg/huggingface/hub");
}

}  // namespace
}  // namespace nibble::hub
