#include "core/file_lock.h"

#include <gtest/gtest.h>

#include <utility>

#include "core/expect_error.h"
#include "core/temporary_folder.h"

namespace nibble {
namespace {

TEST(FileLock, HasOneHolderWhoSaysWhoItIs) {
  const TemporaryFolder folder;
  const auto path = folder / "lock";
  {
    auto first = FileLock::try_acquire(path, "first");
    ASSERT_TRUE(first.has_value());
    EXPECT_FALSE(FileLock::try_acquire(path, "second").has_value());
    EXPECT_EQ(FileLock::read_holder(path), "first");
    const FileLock moved = std::move(*first);
    EXPECT_FALSE(FileLock::try_acquire(path, "second").has_value());
  }
  EXPECT_TRUE(FileLock::try_acquire(path, "next").has_value());
  EXPECT_EQ(FileLock::read_holder(path), "next");
}

TEST(FileLock, RemovedIsFreeForAnother) {
  const TemporaryFolder folder;
  auto first = FileLock::try_acquire(folder / "lock", "first");
  first->remove();
  EXPECT_FALSE(std::filesystem::exists(folder / "lock"));
  auto second = FileLock::try_acquire(folder / "lock", "second");
  ASSERT_TRUE(second.has_value());
  first->remove();  // nothing more: the file is the second's now
  EXPECT_FALSE(FileLock::try_acquire(folder / "lock", "third").has_value());
  EXPECT_EQ(FileLock::read_holder(folder / "elsewhere"), "");
}

TEST(FileLock, NamesAFolderThatIsNotThere) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::Unavailable, "missing/lock: cannot create",
               [&] { FileLock::try_acquire(folder / "missing/lock", "x"); });
}

}  // namespace
}  // namespace nibble
