#include "core/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/expect_error.h"
#include "core/temporary_folder.h"

namespace nibble {
namespace {

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size_bytes()};
}

std::size_t entries_in(const TemporaryFolder& folder) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++count;
  return count;
}

TEST(MappedFile, ShowsTheBytesAlsoAfterAMoveAndARelease) {
  const TemporaryFolder folder;
  const std::string text(20'000, 'x');
  MappedFile first = MappedFile::open(folder.write("f", text));
  const MappedFile file = std::move(first);
  EXPECT_EQ(text_of(file), text);
  file.release(file.bytes());
  EXPECT_EQ(text_of(file), text);
}

TEST(MappedFile, OpensEmptyFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(MappedFile::open(folder.write("empty", "")).size_bytes(), 0u);
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::NotFound, "absent", [&] { MappedFile::open(folder / "absent"); });
  expect_error(ErrorCode::NotFound, "file/below", [&] {
    folder.write("file", "");
    MappedFile::open(folder / "file/below");
  });
  expect_error(ErrorCode::Unsupported, "not a regular file", [&] { MappedFile::open(folder.path()); });
  std::filesystem::create_symlink("nowhere", folder / "dangling");
  expect_error(ErrorCode::NotFound, "dangling", [&] { MappedFile::open(folder / "dangling"); });
  std::filesystem::create_symlink("loop", folder / "loop");
  expect_error(ErrorCode::NotFound, "loop", [&] { MappedFile::open(folder / "loop"); });
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  expect_error(ErrorCode::Unsupported, "not a regular file", [&] { MappedFile::open(folder / "fifo"); });
}

TEST(MappedFile, NamesAFileItMayNotRead) {
  const TemporaryFolder folder;
  const auto path = folder.write("secret", "x");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const uid_t user = ::geteuid();
  constexpr uid_t kNobody = 65534;
  if (user == 0) {  // root may read everything
    ASSERT_EQ(::seteuid(kNobody), 0);
  }
  expect_error(ErrorCode::Unavailable, "secret", [&] { MappedFile::open(path); });
  ASSERT_EQ(::seteuid(user), 0);
}

TEST(AtomicFile, AppearsOnlyWithCommit) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.write("hello");
  EXPECT_EQ(file.position(), 5);
  EXPECT_FALSE(std::filesystem::exists(folder / "a"));
  file.commit();
  EXPECT_EQ(read_text_file(folder / "a"), "hello");
  EXPECT_EQ(entries_in(folder), 1u);
}

TEST(AtomicFile, LeavesNothingWithoutCommitNorTouchesWhatWasThere) {
  const TemporaryFolder folder;
  folder.write("a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
    AtomicFile moved = std::move(file);
    moved.seal();
  }
  EXPECT_EQ(read_text_file(folder / "a"), "old");
  EXPECT_EQ(entries_in(folder), 1u);
}

TEST(AtomicFile, RewritesEarlierBytesAndTakesAnotherName) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.write("....data");
  file.write_at(0, std::as_bytes(std::span("head", 4)));
  EXPECT_EQ(file.position(), 8);
  file.seal();
  file.commit_as(folder / "b");
  EXPECT_EQ(read_text_file(folder / "b"), "headdata");
  EXPECT_EQ(entries_in(folder), 1u);
}

TEST(AtomicFile, NamesAFolderThatIsNotThere) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::NotFound, "missing/a", [&] { AtomicFile file(folder / "missing/a"); });
}

TEST(AtomicFile, ReportsAFullDiskAndLeavesTheOldFile) {
  const TemporaryFolder folder;
  folder.write("a", "old");
  struct rlimit old_limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  struct rlimit limit = old_limit;
  limit.rlim_cur = 4096;  // stands for a full disk: write fails after 4 KB
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  expect_error(ErrorCode::Unavailable, "cannot write",
               [&] { write_text_file(folder / "a", std::string(10'000, 'x')); });
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(read_text_file(folder / "a"), "old");
  EXPECT_EQ(entries_in(folder), 1u);
}

TEST(File, WritesIntoWhatIsNoRegularFileAndLeavesItThere) {
  const TemporaryFolder folder;
  const std::string fifo = (folder / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const int reader = ::open(fifo.c_str(), O_RDONLY | O_NONBLOCK);
  write_text_file(fifo, "text");
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof text), 4);
  EXPECT_STREQ(text, "text");
  ::close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(fifo));
  expect_error(ErrorCode::Unavailable, "Is a directory", [&] { write_text_file(folder.path(), "text"); });
  EXPECT_EQ(entries_in(folder), 1);
}

TEST(File, WritesThroughALinkThatStays) {
  const TemporaryFolder folder;
  write_text_file(folder / "file", "old");
  std::filesystem::create_symlink("file", folder / "link");
  write_text_file(folder / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_text_file(folder / "file"), "new");
  EXPECT_EQ(entries_in(folder), 2);
}

TEST(File, ReadsTextUpToALimit) {
  const TemporaryFolder folder;
  const auto path = folder.write("t", "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  expect_error(ErrorCode::InvalidArgument, "at most 4", [&] { read_text_file(path, 4); });
}

TEST(File, PlainNamesHaveNoPath) {
  for (const char* name : {"model.safetensors", "..a", "a..b", "ünïcode", "-"}) EXPECT_TRUE(is_plain_file_name(name));
  for (const char* name : {"", ".", "..", "../x", "/etc/passwd", "a/b"}) EXPECT_FALSE(is_plain_file_name(name));
  EXPECT_FALSE(is_plain_file_name(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace nibble
